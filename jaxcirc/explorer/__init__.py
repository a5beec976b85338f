"""The explorer: one page for circuits of all kinds, and the layout behind it."""

from ._description import Description as Description, Edge as Edge, Node as Node
from ._figure import figure_of as figure_of
from ._layout import Band as Band, Layout as Layout, layout as layout, RADIUS as RADIUS
from ._page import page as page, write_page as write_page
from ._routes import Routes as Routes, routes as routes
from ._rows import short as short
from ._serve import ADDRESS as ADDRESS, Live as Live, Moved as Moved, server_of as server_of
