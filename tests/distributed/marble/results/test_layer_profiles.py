from distributed.marble.results.layer_profiles import layer_profiles


def row(encoder: str, layers: list, profile: list[float]) -> dict:
    return {"task": "GS", "encoder": encoder, "extra": {"layers": layers, "layer_profile": profile}}


def test_the_best_layer_is_marked_and_readouts_of_all_layers_are_dashed():
    """A chart has two lines over the layers, a dot at the best of each, and one encoder's readouts."""
    rows = [
        row("runs/base", [0, 6, 12, "mean", "reduced"], [0.5, 0.7, 0.6, 0.65, 0.72]),
        row("random_init", [0, 6, 12], [0.4, 0.3, float("nan")]),
    ]
    [chart] = layer_profiles(rows)
    assert [(label, value) for _, label, value in chart.legend] == [("base", "0.600"), ("random init", "0.300")]
    best = "base layer 6, mean of layers 0.650 (dashed), reduction of all layers 0.720 (dashed), random init layer 0"
    assert best in chart.sentence
    assert (chart.svg.count("<circle"), chart.svg.count(' dashed"')) == (2, 2)


def test_encoders_have_colours_of_their_own():
    """Baselines have fixed colours on every page; others take the remaining ones, in order of rows."""
    names = ("runs/base", "random_init", "mert", "muq")
    [chart] = layer_profiles([row(name, [0, 1], [0.5, 0.6]) for name in names])
    assert [tone for tone, _, _ in chart.legend] == ["tone-1", "tone-5", "tone-4", "tone-6"]


def test_an_encoder_with_one_layer_has_no_profile():
    assert layer_profiles([row("log_mel", [0], [0.5])]) == ()
