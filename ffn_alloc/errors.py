"""The errors that are no faults of the program, and the exit codes that launchers rely on."""

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved; run the same command again to go on


class BadInput(ValueError):
    """Input that cannot be used: names the field, its value, what is wrong and the remedy.

    Raised before any long work starts and before anything on disk changes. The command line
    prints it as one message and exits with code 2.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str):
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        super().__init__(f"{field} = {value!r}: {problem}. {remedy}")

    def __reduce__(self):  # from a worker process it arrives pickled
        return type(self), (self.field, self.value, self.problem, self.remedy)


def missing_package(field: str, value: object, package: str, extra: str) -> BadInput:
    """For what needs one of the optional dependencies."""
    problem = f"needs the package {package}, which is not installed"
    return BadInput(field, value, problem, f'Run in the checkout: pip install -e ".[{extra}]"')


class Diverged(FloatingPointError):
    """A loss, a gradient or a state of the training is not finite.

    The same command comes to it again, unless the hardware was at fault: launchers do not repeat
    it. The command line prints it as one message and exits with code 3.
    """


class Preempted(SystemExit):
    """The run was asked to stop, has saved its state, and goes on when it is started again."""

    def __init__(self, step: int):
        self.step = step
        super().__init__(EXIT_PREEMPTED)
