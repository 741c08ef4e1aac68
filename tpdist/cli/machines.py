"""Commands of the machines: jobs on a cluster, and what is at hand here."""

import argparse
from typing import Any

from tpdist.cli.options import add_config, add_dashboard, add_dry_run, add_set, say
from tpdist.errors import Interrupted, TpdistError


def add(commands: Any) -> None:
    """Add them to the subcommands of `tpdist`."""
    submit = commands.add_parser("submit", help="train on a cluster, as a Ray job")
    add_config(submit)
    submit.add_argument("--resume", metavar="JOB", help="resume this job's run, or the run in this directory there")
    add_dashboard(submit)
    submit.add_argument(
        "--working-dir", default=".", metavar="DIR", help="the directory that is sent to the cluster; default ."
    )
    submit.add_argument("--run-dir", metavar="DIR", help="the run's there, below $TPDIST_SHARED; default runs/<job>")
    submit.add_argument(
        "--fetch-to", metavar="DIR", help="local, for <job>/result.json at the end; default runs/fetched"
    )
    submit.add_argument("--no-follow", action="store_true", help="return as soon as it is submitted")
    add_dry_run(submit, "what would be sent and called")
    add_set(submit)
    submit.set_defaults(command=_submit)

    jobs = commands.add_parser("jobs", help="the runs submitted to a cluster")
    add_dashboard(jobs)
    jobs.set_defaults(command=_jobs)

    stop = commands.add_parser("stop", help="save a submitted run and end it")
    stop.add_argument("job", metavar="JOB", help="as tpdist jobs lists it")
    add_dashboard(stop)
    stop.set_defaults(command=_stop)

    doctor = commands.add_parser("doctor", help="look at this machine: what it has, what to mend")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON, and nothing else")
    doctor.set_defaults(command=_doctor)


def _submit(options: argparse.Namespace) -> int:
    from tpdist.launch.jobs import submit
    from tpdist.training.progress import Plain

    if options.no_follow and options.fetch_to:
        raise TpdistError("--fetch-to: --no-follow returns before there is a result to fetch; leave one of them out")
    outcome = submit(
        options.config,
        options.set,
        options.address,
        options.working_dir,
        follow=not options.no_follow,
        fetch_to=options.fetch_to or "runs/fetched",
        say=Plain().say,
        run_dir=options.run_dir,
        resume=options.resume,
        dry_run=options.dry_run,
    )
    return Interrupted.exit_code if outcome.status == "STOPPED" else 0


def _jobs(options: argparse.Namespace) -> None:
    from tpdist.launch.jobs import jobs

    for job in jobs(options.address):
        started = f"{job.started:%Y-%m-%d %H:%M:%S}" if job.started else "-"
        say(f"{job.job}  {job.status:<9}  {started}  {job.seconds or 0:8.0f} s  {job.command}")


def _stop(options: argparse.Namespace) -> None:
    from tpdist.launch.jobs import go_on, stop

    told = f"told to save and end. Continue with: {go_on(options.job, options.address)}"
    say(f"{options.job}: " + (told if stop(options.job, options.address) else "had ended already"))


def _doctor(options: argparse.Namespace) -> int:
    import json  # and not print_json, whose module loads packages that may be missing here

    from tpdist.launch.doctor import examine

    findings = examine()
    bad = any(finding.state == "bad" for finding in findings)
    if options.json:
        say(json.dumps({"fit": not bad, "findings": [vars(finding) for finding in findings]}, indent=1))
    else:
        say("\n".join(finding.text() for finding in findings))
    return 1 if bad else 0
