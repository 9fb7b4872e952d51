from transformers_qaig.utils.suggestion import did_you_mean


def test_names_the_nearest_or_nothing() -> None:
    assert did_you_mean("visoin", {"vision": 1, "head": 2}) == " Did you mean 'vision'?"
    assert did_you_mean("x" * 10**7, ["vision"]) == ""
    assert did_you_mean("AWQ", ["awq", "gptq"]) == " Did you mean 'awq'?"
    assert did_you_mean(5, ["vision"]) == ""
