"""Prompts: pairs of clean and corrupt token arrays with their answers, made from templates or read from files."""

from ._agreement import subject_verb as subject_verb
from ._files import load_prompts as load_prompts, PromptFile as PromptFile
from ._ioi import ioi as ioi
from ._ioi_counterfactuals import ioi_counterfactuals as ioi_counterfactuals, IOICounterfactuals as IOICounterfactuals
from ._prompts import Prompts as Prompts
from ._texts import load_texts as load_texts
from ._words import held_out as held_out
