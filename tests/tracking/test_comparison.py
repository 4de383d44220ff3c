from lora_select.tracking import comparison, names


def test_the_saved_view_decodes_and_is_written_once(store):
    comparison.save(store)
    tag = store.client.get_experiment(store.experiment_id).tags[comparison.TAG]
    assert comparison.read(tag) == comparison.state()
    assert len(tag) < comparison.MAX_TAG
    comparison.save(store)
    assert store.client.get_experiment(store.experiment_id).tags[comparison.TAG] == tag


def test_it_shows_what_a_person_compares():
    state = comparison.state()
    columns = " ".join(state["selectedColumns"])
    for wanted in (
        "variant",
        "`r`",
        "learning_rate",
        "targets",
        "eval/loss/adapted",
        "exact_match",
        "forgetting",
        "tokens",
    ):
        assert wanted in columns
    charts = {(chart["type"], chart["metricKey"]) for chart in state["compareRunCharts"]}
    assert {("BAR", "eval/loss/adapted"), ("LINE", names.TRAIN_LOSS)} <= charts


def test_links_are_quoted():
    link = comparison.compare_link("http://h:1/", "7", ["a", "b"])
    assert link == "http://h:1/#/compare-runs?runs=%5B%22a%22%2C%20%22b%22%5D&experiments=%5B%227%22%5D"
    charts = comparison.view_link("http://h:1", "7", charts=True)
    assert charts.endswith(
        f"viewStateShareKey={comparison.VIEW_ID}&compareRunsMode=CHART&workflowType=machine_learning"
    )
