"""The one exception hierarchy. The command line prints the message and ends with `exit_code`."""

OVERRIDE = "--set"  # where a setting was written that lies above the file
VARIABLE = "TPDIST_SET"


class TpdistError(Exception):
    """Something the user can mend; the message says what, where and how."""

    exit_code = 2


def one_line(text: str) -> str:
    """`text` fit for one line of a terminal: control characters, line breaks among them, as escapes."""
    return text if text.isprintable() else repr(text)[1:-1]


def first_line(what: object) -> str:
    """What a stranger's file or another library says, fit for one line on a terminal."""
    return one_line((str(what).splitlines() or [type(what).__name__])[0])


class ConfigError(TpdistError, ValueError):
    """A value of the configuration that cannot be used.

    `key` is the dotted path of the value (`method.h_steps`). Rooms below the loader raise with the key
    alone; the loader knows the file and the line and puts them in front.
    """

    def __init__(self, message: str, key: str | None = None):
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class ArgumentError(TpdistError):
    """An argument of a function that cannot be used: `name` in Python, `--name` or `--option` at the command line."""

    def __init__(self, name: str, wrong: str, option: str | None = None):
        super().__init__(name, wrong, option)
        self.at_command_line = f"--{option or name.replace('_', '-')}: {wrong}"

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class DataError(TpdistError):
    """A text file or a store that cannot be read. The message may quote what stands there: it stays one line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class RunError(TpdistError):
    """A run directory or a checkpoint that does not fit what was asked."""


class NonFiniteError(TpdistError):
    """Training or an evaluation produced a number that is not finite."""

    exit_code = 3


class WorkersDifferError(TpdistError):
    """Workers that must hold the same parameters do not."""

    exit_code = 1


class OutputError(TpdistError):
    """Standard output cannot be written."""

    @classmethod
    def of(cls, error: OSError) -> "OutputError":
        """What the system says of it."""
        return cls(f"standard output: cannot be written: {error.strerror}")


class Interrupted(TpdistError):  # noqa: N818 - nothing went wrong
    """The user stopped the run; what was reached is saved."""

    exit_code = 130


class Setting(str):
    """A `key=value`, and where the user wrote it, for errors to say: a variable, an option of its own name, a sweep."""

    written_in: str

    def __new__(cls, text: str, written_in: str = OVERRIDE):
        setting = super().__new__(cls, text)
        setting.written_in = written_in
        return setting


def key_of(setting: str) -> str:
    """`optimizer.lr=0.1` -> `optimizer.lr`."""
    return setting.partition("=")[0].strip()


def place_of(setting: str) -> str:
    """Where the user wrote it; a plain text stood behind --set."""
    return getattr(setting, "written_in", OVERRIDE)


def of_variable(setting: str) -> bool:
    """Whether it stands in the environment, for every command."""
    return isinstance(setting, Setting) and setting.written_in == VARIABLE
