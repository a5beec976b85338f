"""What a person looks at."""

from ._graphviz import graphviz_of as graphviz_of
from ._page import page as page
