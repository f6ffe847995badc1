"""Train, resume, evaluate, adapt, follow and tune runs."""

import logging

# In a notebook Ray recommends ipywidgets when it is imported, which nothing here displays.
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
