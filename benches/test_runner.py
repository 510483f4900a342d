"""What scripts/bench concludes from figures, and what it refuses to read. `python3 -m unittest discover benches`"""

import pathlib
import tempfile
import unittest

from runner import cluster, pages, rounds, scenario, verdict

FILE = """
title = "t"
about = "a"
rounds = 3
duration_s = 1
servers = ["fanwire", "nats"]
[chart]
figure = "p99_us"
[[row]]
name = "one"
series = "n"
x = 1
[[row]]
name = "two"
series = "n"
x = 2
"""


def read(text):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "t.toml"
        path.write_text(text)
        return scenario.read(path, rounds.FIGURES, pages.COLUMNS)


def results(**figures):
    """`one_fanwire=[…]`: what each round of a row and server had as p99 and as deliveries a CPU second."""
    found = {}
    for name, values in figures.items():
        result = found[tuple(name.split("_"))] = rounds.Result()
        result.reports = [{"p99_us": value, "deliveries_per_cpu_s": value} for value in values]
    return found


def judged(judge, **figures):
    [one] = verdict.judge_all(read(FILE + "[[judge]]\nwhat = 'w'\n" + judge), results(**figures))
    return one


class Verdicts(unittest.TestCase):
    def test_a_ratio_is_the_median_of_the_rounds_own(self):
        # The machine was ten times slower in the second round: the ratio of the medians would be 5.
        ratio = judged("row = 'one'\nfigure = 'p99_us'\nover = 'nats'\nmust_at_most = 0.5", one_fanwire=[1, 10, 5], one_nats=[2, 20, 1])
        self.assertEqual((ratio.value, ratio.must), (0.5, True))

    def test_must_and_aim_are_told_apart(self):
        bounds = "row = 'one'\nfigure = 'p99_us'\nmust_at_most = 4\naim_at_most = 2"
        words = [(v.must, v.aim) for v in (judged(bounds, one_fanwire=[p99]) for p99 in (1, 3, 5))]
        self.assertEqual(words, [(True, True), (True, False), (False, False)])

    def test_what_was_not_measured_is_missed(self):
        missing = judged("row = 'one'\nfigure = 'p99_us'\nover = 'nats'\nmust_at_most = 9", one_fanwire=[1], one_nats=[])
        self.assertEqual((missing.value, missing.must), (None, False))
        self.assertIn("not measured", str(missing))

    def test_what_was_not_asked_for_is_not_judged(self):
        one = read(FILE + "[[judge]]\nwhat = 'w'\nrow = 'one'\nfigure = 'p99_us'\nover = 'nats'\nmust_at_most = 9")
        self.assertEqual(verdict.judge_all(one, results(one_fanwire=[1])), [])

    def test_a_step_is_judged_towards_the_dearer(self):
        judge = "neighbours = 'n'\nfigure = 'deliveries_per_cpu_s'\nmust_at_most = 1.5"
        self.assertEqual(judged(judge, one_fanwire=[100], two_fanwire=[50]).value, 2)
        self.assertTrue(judged(judge, one_fanwire=[50], two_fanwire=[100]).must, "cheaper is no step")
        self.assertFalse(judged(judge, one_fanwire=[50], two_fanwire=[]).must)


class Files(unittest.TestCase):
    def test_nothing_in_a_file_is_ignored(self):
        wrong = [
            ("duration_s = 1", "duration_s = 1\ndruation = 2", "druation"),
            ('name = "one"', 'name = "one"\nload = { conections = 1 }', "conections"),
            ('name = "one"', 'name = "one"\nservers = ["natz"]', "natz"),
            ('name = "two"', 'name = "one"', "names of their own"),
            ('figure = "p99_us"', 'figure = "p98_us"', "p98_us"),
            ("x = 2", "x = 2\n[[judge]]\nwhat = 'w'\nrow = 'three'\nfigure = 'p99_us'\nmust_at_most = 1", "three"),
            ("x = 2", "x = 2\n[[judge]]\nwhat = 'w'\nrow = 'one'\nfigure = 'p99_us'\naim_at_most = 1", "needs must"),
            ("x = 2", "x = 2\n[[judge]]\nwhat = 'w'\nrow = 'one'\nfigure = 'p99_us'\nover = 'ws'\nmust_at_most = 1", "not measured with"),
            ("x = 2", "x = 2\nladder = { fanwire = [1] }", "ladder"),
        ]
        for before, after, complaint in wrong:
            with self.subTest(after), self.assertRaisesRegex(scenario.Wrong, complaint):
                read(FILE.replace(before, after, 1))

    def test_quick_keeps_each_row_and_makes_it_small(self):
        text = FILE.replace("x = 1", "x = 1\nload = { connections = 10_000, topics = 1000, rate = 5000, storm = 100_000 }")
        one = scenario.quick(read(text))
        load = one.rows[0].load
        self.assertEqual((load["connections"], load["topics"], load["rate"], load["storm"]), (200, 50, 100, 100))
        self.assertEqual([row.rounds for row in one.rows], [1, 1])


class Remarks(unittest.TestCase):
    def test_of_those_that_differ_in_their_figures_the_worst_stands_in_the_table(self):
        late = "the publisher is late: p99 %d ms behind"
        self.assertEqual(pages.worst({late % 98, late % 1200, late % 300, "client-bound"}), ["client-bound", late % 1200])


class Clusters(unittest.TestCase):
    row = cluster.Row("relay", 3, 50_000)

    def round(self, others=(50_000, 49_900), p99s=(3000, 5000), lost=0, dropped=0.0):
        report = {
            "messages": 100_000, "published_per_s": 50_000.0, "lost": lost, "refused": 0, "client_busy_percent": 30, "publisher_busy_percent": 20,
            "nodes": [{"deliveries_per_s": 50_000, "p50_us": 1000, "p99_us": 2000}]
            + [{"deliveries_per_s": rate, "p50_us": 1500, "p99_us": p99} for rate, p99 in zip(others, p99s)],
        }
        used = {
            "etcd": {"etcd": 0.01}, "node 0": {"control": 0.5, "accept": 0.01, "shards": 0.1},
            "node 1": {"control": 0.2, "shards": 0.1}, "node 2": {"control": 0.4, "shards": 0.1},
        }
        return cluster.measured(self.row, report, used, dropped, lost - dropped)

    def test_cpu_is_told_by_thread_and_message_and_the_worst_node_stands_for_the_others(self):
        one = self.round()
        self.assertAlmostEqual(one.own_control_us, 5.1)
        self.assertAlmostEqual(one.other_control_us, 3.0)
        self.assertAlmostEqual(one.load_us, 10.0)
        self.assertEqual((one.other_per_s, one.other_p99_us, one.above_local_us), (49_900, 5000, 3000))
        self.assertAlmostEqual(one.cores, 0.05 * (5.1 + 1 + 2 * (3 + 1) + 0.1 + 10))

    def test_a_row_is_the_median_of_its_rounds_and_a_loss_in_one_of_them_stays(self):
        rounds_ = [self.round(p99s=(p99, p99), lost=lost, dropped=lost / 2) for p99, lost in [(4000, 0), (9000, 2), (60_000, 4)]]
        [row] = cluster.medians(rounds_)
        self.assertEqual((row.other_p99_us, row.lost, row.dropped, row.missed), (9000, 6, 3, 3))

    def test_what_is_judged_is_three_nodes_that_keep_up_with_a_bounded_delay(self):
        self.assertEqual(cluster.misses([self.round()]), [])
        for bad, word in [(self.round(others=(50_000, 40_000)), "delivered"), (self.round(lost=1), "lost"), (self.round(p99s=(3000, 13_000)), "above local")]:
            [said] = cluster.misses([bad])
            self.assertIn(word, said)

    def test_rounds_come_back_from_their_file_as_they_were(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "scale.csv"
            alone = cluster.measured(cluster.Row("alone", 1, 1000), {**self.report(), "nodes": []}, {"node 0": {"control": 0.1, "shards": 0.1}}, 0.0, None)
            cluster.write_csv(path, [self.round(), alone])
            self.assertEqual(cluster.read_csv(path), [self.round(), alone])
            self.assertIn("| alone | 1 |", cluster.table([alone])[-1])

    def report(self):
        return {"messages": 1000, "published_per_s": 1000.0, "lost": 0, "refused": 0, "client_busy_percent": 3, "publisher_busy_percent": 2,
                "deliveries_per_s": 1000.0, "p50_us": 100, "p99_us": 200}


if __name__ == "__main__":
    unittest.main()
