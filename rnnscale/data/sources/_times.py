"""Times in text: numbers and dates."""

from datetime import UTC, datetime

import numpy as np


def parse_time(text: str) -> float:
    """A time as a number: of a date of ISO 8601, the seconds since 1970; NaN if it is neither.

    A date without a time zone is in UTC; a month, such as `2024-05`, is its first day.
    """
    try:
        return float(text)
    except ValueError:
        pass
    for date in (text, f"{text}-01"):
        try:
            found = datetime.fromisoformat(date.strip())
        except ValueError:
            continue
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    return np.nan
