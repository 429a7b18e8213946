"""Memory encoders: from the tokens of a trial to features that remember them."""

from sb3_trmrl.common.arguments import did_you_mean
from sb3_trmrl.memory_encoders.base import MemoryEncoder, MemoryState, WindowMemoryEncoder
from sb3_trmrl.memory_encoders.gtrxl import GTrXLEncoder
from sb3_trmrl.memory_encoders.rnn import GRUEncoder, LSTMEncoder
from sb3_trmrl.memory_encoders.snail import SNAILEncoder
from sb3_trmrl.memory_encoders.tfixup import TFixupTransformerEncoder, tfixup_

#: Encoders that can be chosen by name, since the yaml files of RL Zoo can't name classes.
MEMORY_ENCODERS: dict[str, type[MemoryEncoder]] = {
    "tfixup": TFixupTransformerEncoder,
    "gru": GRUEncoder,
    "lstm": LSTMEncoder,
    "gtrxl": GTrXLEncoder,
    "snail": SNAILEncoder,
}


def register_memory_encoder(name: str, memory_encoder: type[MemoryEncoder]) -> None:
    """
    Make an encoder selectable by name: ``policy_kwargs=dict(memory_encoder=name)``. Whoever loads a model with it must have
    registered it first.

    :param name: Its name
    :param memory_encoder: A subclass of :class:`MemoryEncoder`
    :raises ValueError: if the class is no memory encoder, or another one has this name
    """
    if not (isinstance(memory_encoder, type) and issubclass(memory_encoder, MemoryEncoder)):
        raise ValueError(f"memory_encoder must be a subclass of MemoryEncoder, got {memory_encoder!r}.")
    if MEMORY_ENCODERS.get(name, memory_encoder) is not memory_encoder:
        raise ValueError(f"name {name!r} is taken by {MEMORY_ENCODERS[name].__name__}: choose another one.")
    MEMORY_ENCODERS[name] = memory_encoder


def get_memory_encoder_class(memory_encoder: str | type[MemoryEncoder]) -> type[MemoryEncoder]:
    """
    :param memory_encoder: Name of an encoder or a subclass of :class:`MemoryEncoder`
    :return: The encoder's class
    :raises ValueError: if there is no encoder of that name
    """
    if isinstance(memory_encoder, str):
        if memory_encoder not in MEMORY_ENCODERS:
            hint = did_you_mean(memory_encoder, MEMORY_ENCODERS)
            raise ValueError(
                f"memory_encoder must be one of {sorted(MEMORY_ENCODERS)}, got {memory_encoder!r}.{hint} An encoder of your "
                "own needs sb3_trmrl.register_memory_encoder(name, cls) first."
            )
        return MEMORY_ENCODERS[memory_encoder]
    if not (isinstance(memory_encoder, type) and issubclass(memory_encoder, MemoryEncoder)):
        raise ValueError(f"memory_encoder must be a name or a subclass of MemoryEncoder, got {memory_encoder!r}.")
    return memory_encoder


__all__ = [
    "MEMORY_ENCODERS",
    "GRUEncoder",
    "GTrXLEncoder",
    "LSTMEncoder",
    "MemoryEncoder",
    "MemoryState",
    "SNAILEncoder",
    "TFixupTransformerEncoder",
    "WindowMemoryEncoder",
    "get_memory_encoder_class",
    "register_memory_encoder",
    "tfixup_",
]
