"""Plain forms of operations, for converters that know no platforms."""

import jax
import jax.numpy as jnp
import pytest

from mcis.ops import conv
from mcis.ops.crf import CRF, mean_field
from mcis.ops.lowering import plain_forms
from mcis.ops.norm import layer_norm

IMAGE = jnp.ones((1, 4, 4, 2))
OPERATIONS = {
    "conv": lambda x: conv.conv(x, jnp.ones((3, 3, 2, 2))),
    "depthwise": lambda x: conv.depthwise(x, jnp.ones((3, 3, 2))),
    "layer_norm": lambda x: layer_norm(x, jnp.ones(2), jnp.ones(2)),
    "mean_field": lambda x: mean_field(x[..., :1], x, CRF(steps=1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_within_the_context_a_program_does_not_depend_on_the_platform(name):
    def program():
        return str(jax.make_jaxpr(lambda x: OPERATIONS[name](x))(IMAGE))

    assert "platform_index" in program()
    with plain_forms():
        assert "platform_index" not in program()
    assert "platform_index" in program()


def test_the_context_ends_where_an_error_is_raised():
    with pytest.raises(RuntimeError), plain_forms():
        raise RuntimeError
    assert "platform_index" in str(jax.make_jaxpr(OPERATIONS["conv"])(IMAGE))
