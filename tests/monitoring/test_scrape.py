"""What a gateway tells Prometheus of the pages there are."""

from monitoring.scrape import discovered


def test_replicas_have_the_label_that_they_have_on_a_gateways_page_and_others_none() -> None:
    pages = {"10.0.0.2:7": "r2", "10.0.0.1:9": None, "10.0.0.1:5": "r1", "10.0.0.1:8": None}
    assert discovered(pages) == [
        {"targets": ["10.0.0.1:8", "10.0.0.1:9"], "labels": {}},
        {"targets": ["10.0.0.1:5"], "labels": {"replica": "r1"}},
        {"targets": ["10.0.0.2:7"], "labels": {"replica": "r2"}},
    ]
