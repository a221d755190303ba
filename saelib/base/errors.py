"""The error for a user's mistake: rule, value and remedy on one line."""


class UserError(ValueError):
    """Bad input or an unusable environment. The command line prints it on one line and exits with code 2.

    `str(error)` is ``"<rule>; got <value>: <remedy>"``, for example
    ``feature must be in [0, d_sae=512); got 4096: pass a feature of the narrow SAE``.
    """

    def __init__(self, rule: str, got: object = None, remedy: str | None = None) -> None:
        self.rule, self.got, self.remedy = rule, got, remedy
        text = rule
        if got is not None:
            text += f"; got {got}"
        if remedy is not None:
            text += f": {remedy}"
        super().__init__(" ".join(text.split()))  # one line, whatever was passed in
