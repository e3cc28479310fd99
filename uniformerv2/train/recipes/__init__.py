"""Recipes by name: the 49 published experiments, and where to start with data of one's own. Imports no torch."""

from __future__ import annotations

from uniformerv2.errors import RecipeError
from uniformerv2.text import nearest
from uniformerv2.train.recipes.base import NamedRecipe
from uniformerv2.train.recipes.own import OWN
from uniformerv2.train.recipes.scene import SCENE
from uniformerv2.train.recipes.temporal import TEMPORAL

RECIPES: dict[str, NamedRecipe] = {named.name: named for named in (*SCENE, *TEMPORAL, *OWN)}


def find_recipe(name: str) -> NamedRecipe:
    """The recipe of that name, its words in any order: "b16-k400-8x224" is "k400-b16-8x224".

    Raises:
        RecipeError: there is none; the message has the nearest.
    """
    words = sorted(name.lower().split("-"))
    for named in RECIPES.values():
        if sorted(named.name.split("-")) == words:
            return named
    raise RecipeError(f"no recipe is called {name!r}; {nearest(name.lower(), RECIPES)}")
