"""The command ``raypipe doctor``, which checks an installation or a cluster."""

from typing import Annotated

import typer

from raypipe.cli.app import CHECKS, Input, Output, command


@command(CHECKS)
def doctor(
    input_uri: Input = None,
    output: Output = None,
    *,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Check a cluster from outside, then from within: http://HOST:8265."),
    ] = None,
    grafana: Annotated[
        bool, typer.Option("--grafana", help="Only print where the files for Prometheus and Grafana are.")
    ] = False,
) -> int:
    """Check decoders, sandbox, weights, storage, Ray and GPUs, here or on a cluster. Suggest a fix for each problem."""
    if grafana:
        from raypipe.monitoring import how_to_use

        typer.echo(how_to_use())
        return 0
    if address is not None:
        return _doctor_there(address, input_uri=input_uri, output_uri=output)
    from rich.console import Console

    from raypipe.doctor.checks import checks_table, run_checks

    checks = run_checks(input_uri=input_uri, output_uri=output)
    Console().print(checks_table(checks))
    return 1 if any(check.state == "error" for check in checks) else 0


def _doctor_there(address: str, *, input_uri: str | None, output_uri: str | None) -> int:
    from rich.console import Console

    from raypipe.doctor.checks import check_api, checks_table
    from raypipe.submit import Remote, connect, packed_doctor

    client = connect(address)
    checks = check_api(client)
    Console().print(checks_table(checks))
    remote = Remote(client)
    with packed_doctor(input_uri=input_uri, output_uri=output_uri) as job:
        remote.send(job)
    code = remote.follow(job.submission_id, write=lambda text: typer.echo(text, nl=False))
    return 1 if any(check.state == "error" for check in checks) else code
