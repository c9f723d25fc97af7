"""Blocks around a sequence layer, stacks of blocks, and models with a stack inside."""

from rnnscale.models._block import Block as Block
from rnnscale.models._classifier import SequenceClassifier as SequenceClassifier
from rnnscale.models._generate import generate as generate
from rnnscale.models._language_model import LanguageModel as LanguageModel
from rnnscale.models._mixers import (
    FFN as FFN,
    GLU as GLU,
    HalfGLU as HalfGLU,
    Identity as Identity,
    Nonlinearity as Nonlinearity,
)
from rnnscale.models._stack import BlockStack as BlockStack
