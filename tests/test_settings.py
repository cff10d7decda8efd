import pytest

from skunet.settings import SharedSetting


def test_a_setting_that_refuses_is_not_held():
    values = [8]

    def write(value):
        if value < 0:
            raise ValueError("too small")
        values[0] = value

    setting = SharedSetting(lambda: values[0], write)
    with pytest.raises(ValueError, match="too small"), setting.changed(lambda before: -before):
        pass
    with setting.changed(lambda before: before // 2):
        assert values == [4]
        with setting.changed(lambda before: before // 4):
            assert values == [2]
    assert values == [8]
