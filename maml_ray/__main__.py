"""Run the command line as ``python -m maml_ray``, for jobs, which lack the installed script."""

from maml_ray.cli.main import main

main()
