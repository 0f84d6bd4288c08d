from collections.abc import Iterator

from fairseq_sharing.preparation.parallel import Workers


def test_results_keep_the_order_and_the_input_is_read_no_faster_than_needed():
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(200):
            read += 1
            yield -number

    with Workers(2) as workers:
        for position, result in enumerate(workers.map(abs, numbers())):
            assert result == position
            assert read <= position + 4 * 2 + 1


def test_a_single_item_needs_no_process():
    with Workers(2) as workers:
        # A closure cannot be sent to another process.
        assert list(workers.map(lambda item: item + 1, [1])) == [2]
