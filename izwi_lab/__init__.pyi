# What the lazy names of izwi_lab are, for editors and type checkers; a test holds it equal to __init__.py.

from izwi_lab import bench as bench
from izwi_lab import catalog as catalog
from izwi_lab import errors as errors
from izwi_lab import lab as lab
from izwi_lab.audio import Audio as Audio
from izwi_lab.backends.detect import devices as devices
from izwi_lab.cancel import CancelToken as CancelToken
from izwi_lab.engine.admission import QueueLimits as QueueLimits
from izwi_lab.engine.lane import LaneOptions as LaneOptions
from izwi_lab.errors import IzwiError as IzwiError
from izwi_lab.families.qwen3_tts.voice import Voice as Voice
from izwi_lab.families.shared.quantise import quantize as quantize
from izwi_lab.families.shared.sampling import Sampling as Sampling
from izwi_lab.families.shared.speculative import DraftModel as DraftModel
from izwi_lab.families.shared.speculative import PromptLookup as PromptLookup
from izwi_lab.families.shared.steps import Prompt as Prompt
from izwi_lab.results import AudioChunk as AudioChunk
from izwi_lab.results import ChatReply as ChatReply
from izwi_lab.results import Segment as Segment
from izwi_lab.results import Speech as Speech
from izwi_lab.results import TextDelta as TextDelta
from izwi_lab.results import Timing as Timing
from izwi_lab.results import TokenLogprob as TokenLogprob
from izwi_lab.results import ToolCall as ToolCall
from izwi_lab.results import Transcript as Transcript
from izwi_lab.results import Usage as Usage
from izwi_lab.results import Word as Word
from izwi_lab.runtime.api import chat as chat
from izwi_lab.runtime.api import default_engine as default_engine
from izwi_lab.runtime.api import load as load
from izwi_lab.runtime.api import speak as speak
from izwi_lab.runtime.api import transcribe as transcribe
from izwi_lab.runtime.service import InferenceEngine as InferenceEngine
from izwi_lab.runtime.types import ChatRequest as ChatRequest
from izwi_lab.runtime.types import SpeechRequest as SpeechRequest
from izwi_lab.runtime.types import TranscriptionRequest as TranscriptionRequest

__version__: str
__all__: list[str]

def __dir__() -> list[str]: ...
