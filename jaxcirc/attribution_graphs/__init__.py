"""Attribution graphs, and what checks them."""

from ._changes import Change as Change
from ._generate import generate as generate, Generation as Generation
from ._intervene import intervene as intervene, Intervention as Intervention
