from ._block import Block as Block
from ._certificates import certificates as certificates
from ._classifier import SequenceClassifier as SequenceClassifier
from ._generate import generate as generate
from ._language_model import LanguageModel as LanguageModel
from ._mixers import (
    FFN as FFN,
    GLU as GLU,
    GatedFFN as GatedFFN,
    HalfGLU as HalfGLU,
    Identity as Identity,
    Nonlinearity as Nonlinearity,
)
from ._recurrent_layers import (
    LayerWithInputs as LayerWithInputs,
    recurrent_layers as recurrent_layers,
)
from ._stack import BlockStack as BlockStack
