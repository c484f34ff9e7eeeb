from mcis.names import meant, no_such


def test_the_most_similar_name_is_suggested_in_any_case():
    assert meant("DICE_LESOIN", ["dice", "dice_lesion", "dice_patient"]) == " Did you mean 'dice_lesion'?"
    assert meant("../../home", ["route", "classify_brain"]) == ""
    assert meant("", ["route"]) == meant("route", []) == ""


def test_all_names_are_listed_also_where_none_is_similar():
    assert no_such("task", "x", iter(["route", "classify"])) == "There is no task 'x'. The tasks are route, classify"
