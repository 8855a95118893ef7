"""The recipe of a model file: what holds where a flag is not given, and what a run's own file says of it."""

from pathlib import Path

from neurotwin.config import ConfigError, ModelConfig, TrainingConfig, define

from .flags import Arguments, contradiction

__all__ = ["follow_recipe", "with_recipe"]


def follow_recipe(arguments: Arguments, recipe: TrainingConfig, file: str | Path | None) -> Arguments:
    """The flags with the values of a model file's `training` section where they were not given.

    Parameters
    ----------
    arguments
        From :func:`parse_arguments`.
    recipe
        The section.
    file
        The model file, for messages.

    Raises
    ------
    ConfigError
        If the section asks for what there is not, or contradicts itself or flags that were given.
    """
    values = {name: value for name, value in recipe.given().items() if name not in arguments.given}
    merged = Arguments(arguments.given, frozenset(values), **vars(arguments) | values)
    try:
        define("lr_schedule", merged.lr_scheduler)
    except ConfigError as error:
        raise ConfigError(f"{file}: training.lr_scheduler: {error}") from None
    text, names = contradiction(merged)
    if text:
        own = " and ".join(sorted(names & merged.recipe))
        raise ConfigError(f"{text} ({own}: from the training section of {file})" if own else text)
    return merged


def with_recipe(config: ModelConfig, arguments: Arguments) -> ModelConfig:
    """A model's config with the recipe that held: what repeats the run without a flag."""
    held = {name: getattr(arguments, name) for name in TrainingConfig.model_fields if hasattr(arguments, name)}
    return config.model_copy(update={"training": config.training.model_copy(update=held)})
