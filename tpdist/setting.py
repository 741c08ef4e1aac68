"""A setting as somebody wrote it. Imports nothing: the command line reads it before the configuration is there."""

OVERRIDE = "--set"


class Setting(str):
    """A `key=value`, and where the user wrote it, for errors to say: a variable, an option of its own name, a sweep."""

    written_in: str

    def __new__(cls, text: str, written_in: str = OVERRIDE):
        setting = super().__new__(cls, text)
        setting.written_in = written_in
        return setting
