"""``python -m maml_ray``: the command line where no script is installed, as in a job's upload."""

from maml_ray.cli.main import main

main()
