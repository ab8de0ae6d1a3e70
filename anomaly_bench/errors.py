"""What a user did that cannot work, said in one line."""


class SettingError(ValueError):
    """A setting, a file or a device that cannot be used.

    The message names the setting, what was found, and what is allowed. The command line prints it as one
    line and exits with code 2.
    """
