"""Tables and picture of the ablation, from `evaluation/results/ablation/mini-ROW-seedN`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from result_files import RESULTS, Rows, load, share

from gen_vla.commands.ablation import KINDS, ROWS
from gen_vla.evaluation.report.tables import load_paper
from gen_vla.evaluation.report.trials import Trials, mean_trials
from gen_vla.evaluation.resumable import read_lines
from gen_vla.evaluation.statistics.intervals import Scored, paired_correlation, sign_flip_p
from gen_vla.evaluation.statistics.seed_intervals import mean_over_seeds, seed_difference


LOOKS = ("home", "broad", "unseen")
COMPARISONS = {
    "the whole recipe": ("openvla-plus", "openvla"),
    "D": ("openvla-plus", "openvla-sc"),
    "S": ("openvla-sc", "openvla-c"),
    "C": ("openvla-plus", "openvla-ds"),
}
SEEDS = 3  # of each row, before anything is tested
MIXTURES = [row for row in ROWS if row.startswith("openvla-plus-")]
PICKING = {  # result files of policies trained on picking up alone
    "400": "400 demonstrations, 3,000 steps",
    "1600": "1,600 demonstrations",
    "1600_6000": "1,600 demonstrations, 6,000 steps",
    "400_deep": "twice the layers",
    "400_state": "told where its hand is",
    "1600_state": "told, 1,600 demonstrations",
    "1600_state_6000": "told, 1,600 demonstrations, 6,000 steps",
    "move_1600_state_6000": "moving near: told, 1,600 demonstrations, 6,000 steps",
}
DRAWN = {  # modes of the tabletop
    "drawers,\nas demonstrated": "matching",
    "drawers,\nbackground masked": "masked",
    "drawers, looks\nof the questions": "seen_variants",
    "drawers,\nunseen looks": "variants",
    "drawers,\nother words": "paraphrase",
}


def runs(results: str = "ablation", rows: Iterable[str] | None = None) -> Iterator[tuple[str, str, str]]:
    """Folder, row and seed of every run of the ablation, in the order of its rows; by default of all but those that
    mix other batches."""
    found = {path.name for path in (RESULTS / results).iterdir()}
    for row in (row for row in ROWS if row not in MIXTURES) if rows is None else rows:
        for name in sorted(name for name in found if name.rpartition("-seed")[0] == f"mini-{row}"):
            yield f"{results}/{name}", row, name.rpartition("-seed")[2]


def is_there(name: str) -> bool:
    """Whether there is a result file; a flow-matching model has none of answers."""
    return (RESULTS / f"{name}.json").is_file()


def success(folder: str) -> dict[str, Any]:
    """The scores of a run's policy, by mode of the tabletop."""
    return {
        mode: score
        for suite in ("matching", "variants")
        for mode, score in load(f"{folder}/{suite}")["policies"]["policy"]["scores"].items()
    }


def scores() -> Rows:
    """Success, with intervals, and answers."""
    for folder, row, seed in runs():
        reached = success(folder)
        modes = ("matching", "paraphrase", "masked", "seen_variants", "variants")
        yield [f"`{row}`", seed, *(share(reached[mode]["all"], "successes") for mode in modes)]


def kept() -> Rows:
    """Answers, before and after, and how far actions are from demonstrated ones."""
    for words, base in (("the base", "mini_vlm"), ("the base of `pi0`", "mini_paligemma")):
        before = [share(load(f"questions_{base}_{looks}")["total"], "right") for looks in LOOKS]
        yield [words, "", *before, "", "", ""]
    for folder, row, seed in runs():
        files = [f"{folder}/questions_{looks}" for looks in LOOKS]
        answers = [share(load(name)["total"], "right") if is_there(name) else "" for name in files]
        yield [f"`{row}`", seed, *answers, *(error(f"{folder}/actions_{looks}") for looks in LOOKS)]


def mixtures() -> Rows:
    """Other shares of robot data, and kinds of questions left out."""
    for folder, row, seed in runs(rows=["openvla-plus", *MIXTURES]):
        reached, kinds = success(folder), load(f"{folder}/questions_broad")["kinds"]
        scores = [share(reached[mode]["all"], "successes") for mode in ("matching", "seen_variants")]
        answered = [f"{right}/{n}" for right, n in answers_by_group(kinds).values()]
        yield [f"`{row}`", seed, *scores, error(f"{folder}/actions_broad"), *answered]


def answers_by_group(kinds: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each group that a row leaves out."""
    return {
        group: (sum(kinds[kind]["right"] for kind in each), sum(kinds[kind]["n"] for kind in each))
        for group, each in KINDS.items()
    }


def probes() -> Rows:
    """What linear probes read off the image tokens of both encoders, before and after."""
    for folder, row, seed in (run for run in runs() if is_there(f"{run[0]}/representations_broad")):
        tasks = [task for looks in LOOKS[1:] for task in load(f"{folder}/representations_{looks}")["tasks"]]
        read = {
            role: [f"{100 * t['value']:.0f} %" for t in tasks if t["role"] == role] for role in ("before", "after")
        }
        if folder == next(runs())[0]:
            yield ["the base", "", *read["before"]]
        yield [f"`{row}`", seed, *read["after"]]


def aim() -> Rows:
    """What the expert does with places that are off, and where the base points."""
    for name, found in load("aim_mini_vlm")["experts"].items():
        tasks = found["scores"]["matching"]["tasks"]
        words = "where the base points" if name == "model" else name
        off = found["off_cm"]["matching"]
        yield [words, f"{off['median']:.1f} cm", *(share(tasks[task], "successes") for task in tasks)]


def points() -> Rows:
    """What the expert does where each model points, picking up and moving near together."""
    files = [("the base", "", "aim_mini_vlm"), *((f"`{row}`", seed, f"{folder}/aim") for folder, row, seed in runs())]
    for row, seed, name in files:
        if is_there(name):
            found, modes = load(name)["experts"]["model"], ("matching", "seen_variants", "variants")
            cells = [share(found["scores"][mode]["all"], "successes") for mode in modes]
            off = [found["off_cm"][mode]["median"] for mode in modes[1:]]
            yield [row, seed, *cells, *("" if median is None else f"{median:.1f} cm" for median in off)]


def picking() -> Rows:
    """Policies that were trained on picking up alone, and with some values of their actions from the expert."""
    for name, words in PICKING.items():
        policies = {**load(f"picking/matching_{name}")["policies"], **load(f"picking/helped_{name}")["policies"]}
        acting = ("policy", "expert_xy", "expert_z", "expert_gripper")
        scores = [share(policies[policy]["scores"]["matching"]["all"], "successes") for policy in acting]
        yield [words, error(f"picking/actions_{name}"), *scores]


def new_objects() -> Rows:
    """Successes with objects that demonstrations left out and with others, and what is still answered."""
    for folder, row, seed in runs("new_objects"):
        policies = {**load(f"{folder}/helped")["policies"], **load(f"{folder}/objects")["policies"]}
        acting = [(policy, "new_objects") for policy in ("policy", "swapped", "expert_xy")]
        acting += [(policy, "familiar_objects") for policy in ("policy", "swapped")]
        scores = [share(policies[policy]["scores"][mode]["all"], "successes") for policy, mode in acting]
        answered = [share(load(f"{folder}/questions_{looks}")["total"], "right") for looks in ("home", "broad")]
        yield [f"`{row}`", seed, *scores, *answered]


def new_objects_compared() -> Rows:
    """In how many layouts the named new object is picked up by which of two models, and the exact p over layouts."""
    done = {(row, seed): picked_up(folder) for folder, row, seed in runs("new_objects")}
    for seed in sorted({seed for _, seed in done}):
        if ("openvla-plus", seed) in done and ("openvla-ds", seed) in done:
            pairs = list(zip(done["openvla-plus", seed], done["openvla-ds", seed], strict=True))
            counts = [str(pairs.count(pair)) for pair in ((True, True), (True, False), (False, True), (False, False))]
            yield [seed, *counts, f"{sign_flip_p([first - second for first, second in pairs]):.2g}"]


def picked_up(folder: str) -> list[bool]:
    """Of each layout with new objects, in the order of seeds."""
    _, *episodes = read_lines(RESULTS / folder / "trials.jsonl")
    new = sorted((each["seed"], each["outcome"] == "success") for each in episodes if each["mode"] == "new_objects")
    return [success for _, success in new]


def error(name: str) -> str:
    """`0.41 (0.37-0.44)`, times that of the mean action."""
    found = load(name)["relative"]["mean action"]
    return "{:.2f} ({:.2f}-{:.2f})".format(found["value"], *found["interval"])


def beside_paper() -> Rows:
    """The rows of the paper's tables II to IV, averaged over tasks, and ours of the same names, over seeds."""
    paper = load_paper()
    slugs = {name: model["slug"] for name, model in paper["models"].items()}
    theirs: dict[str, dict[str, float]] = {}
    for table in paper["tables"][:3]:
        for name, cells in table["rows"].items():
            by_mode: dict[str, list[float]] = {}
            for column, cell in zip(table["columns"], cells, strict=True):
                if column["task"] == "average" or column["mode"] == "paraphrase":
                    by_mode.setdefault(column["mode"], []).append(cell)
            found = {mode: sum(cells) / len(cells) for mode, cells in by_mode.items()}
            theirs[slugs[name]] = found | theirs.get(slugs[name], {})
    ours: dict[str, list[dict[str, Any]]] = {}
    for folder, row, _ in runs():
        ours.setdefault(row, []).append(success(folder))
    for row in (row for row in ours if row in theirs):
        cells = []
        for mode in ("matching", "masked", "variants", "paraphrase"):
            rates = [scores[mode]["all"]["rate"] for scores in ours[row]]
            cells += [
                f"{theirs[row][mode]:.0f}" if mode in theirs[row] else "",
                f"{100 * sum(rates) / len(rates):.0f}",
            ]
        yield [f"`{row}`", str(len(ours[row])), *cells]


def costs() -> Rows:
    """What training and acting cost; the encoders and layers are the same for all seeds."""
    for folder, row, seed in runs():
        if seed == "0":
            acting, floating = load(f"{folder}/latency"), load(f"{folder}/training_end")["total_flos"]
            milliseconds = (f"{acting[name]:.0f}" for name in ("median_ms", "p95_ms"))
            yield [f"`{row}`", f"{floating / 1e12:.0f}", f"{acting['forward_passes']:g}", *milliseconds]


def trials_in_looks(folder: str, mode: str = "seen_variants") -> Trials:
    """Trials in other looks."""
    return trials_of(success(folder)[mode])


def trials_where_it_points(folder: str) -> Trials:
    """Trials of the expert in unseen looks; empty for a run that was not asked."""
    name = f"{folder}/aim"
    return trials_of(load(name)["experts"]["model"]["scores"]["variants"]) if is_there(name) else {}


def trials_of(scores: dict[str, Any]) -> Trials:
    """Files count successes per look and task, so that a look is a cluster."""
    return {
        f"{family}/{look}/{task}/{number}": Scored(f"{family}/{look}", task, float(number < score["successes"]))
        for family, looks in scores["families"].items()
        for look, found in looks["variants"].items()
        for task, score in found["tasks"].items()
        for number in range(score["n"])
    }


def answers(folder: str, looks: str = "broad") -> Trials:
    """Answers, one about each picture."""
    given = load(f"{folder}/questions_{looks}")["answers"]
    return {str(number): Scored(str(number), "", float(answer["right"])) for number, answer in enumerate(given)}


def differences() -> Rows:
    """The eight planned comparisons: differences of means over seeds, paired over looks and over questions."""
    found = []
    for outcome, read in (("success", trials_in_looks), ("answers", answers)):
        for words, rows in COMPARISONS.items():
            seeds = [[read(folder) for folder, row, _ in runs() if row == name] for name in rows]
            first, second = (mean_over_seeds([list(trials.values()) for trials in each]) for each in seeds)
            correlation = paired_correlation(*(mean_trials(each) for each in seeds))
            bounds, p = seed_difference(first, second, correlation)
            shown = [100 * value for value in (first.share - second.share, *bounds)]
            found.append((words, rows, outcome, [len(each) for each in seeds], shown, p))
    corrected = holm([p for *_, p in found])
    complete = all(min(seeds) >= SEEDS for _, _, _, seeds, _, _ in found)
    for (words, rows, outcome, seeds, shown, _), p in zip(found, corrected, strict=True):
        compared = " and ".join(f"`{row}`" for row in rows)
        difference = "{:+.0f} ({:+.0f} to {:+.0f})".format(*shown)
        shown_p = "< 0.0001" if p < 0.0001 else f"{p:.3g}"
        yield [words, compared, outcome, " and ".join(map(str, seeds)), difference, shown_p if complete else ""]


def over_seeds(row: str, read: Callable[[str], Trials]) -> str:
    """`64 % (41-82 %, 3 seeds)`: the mean of a row's seeds, as far as they are measured."""
    seeds = [list(read(folder).values()) for folder, each, _ in runs() if each == row]
    mean = mean_over_seeds([trials for trials in seeds if trials])
    low, high = (f"{100 * bound:.0f}" for bound in mean.interval)
    count = len(mean.shares)
    return f"{100 * mean.share:.0f} % ({low}-{high} %, {count} seed{'s' * (count > 1)})"


def holm(values: list[float]) -> list[float]:
    """p values of as many tests, corrected by Holm's method."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, (len(values) - rank) * values[place])
        corrected[place] = min(1.0, largest)
    return corrected


def draw_mixtures(path: Path) -> None:
    """Success and answers over the share of robot data, and with each kind of questions left out; a dot per seed."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shares, kinds = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    by_row: dict[str, list[dict[str, float]]] = {}
    for folder, row, _ in runs(rows=["openvla-plus", *MIXTURES]):
        asked = load(f"{folder}/questions_broad")
        found = {"drawers, looks of the questions": success(folder)["seen_variants"]["all"]["rate"]}
        found["answers"] = asked["total"]["right"] / asked["total"]["n"]
        found |= {group: right / n for group, (right, n) in answers_by_group(asked["kinds"]).items()}
        by_row.setdefault(row, []).append({name: 100 * value for name, value in found.items()})
    of_robot = {round(100 * ROWS[row].get("data.robot_share", 0.5)): found for row, found in by_row.items()}
    of_robot[50] = by_row["openvla-plus"]
    for name in ("drawers, looks of the questions", "answers"):
        places = sorted(of_robot)
        (line,) = shares.plot(places, [mean(found[name] for found in of_robot[place]) for place in places], label=name)
        for place in places:
            shares.plot(
                [place] * len(of_robot[place]), [found[name] for found in of_robot[place]], ".", c=line.get_color()
            )
    shares.set(xlabel="robot data in a batch, %", ylabel="%", ylim=(0, 100), xticks=sorted(of_robot))
    shares.legend(loc="lower left")
    rows = [row for row in by_row if "robot" not in row]
    names = ["drawers, looks of the questions", *KINDS]
    for number, row in enumerate(rows):
        width = 0.8 / len(rows)
        places = [group + (number - (len(rows) - 1) / 2) * width for group in range(len(names))]
        kinds.bar(places, [mean(found[name] for found in by_row[row]) for name in names], 0.9 * width, label=row)
        for place, name in zip(places, names, strict=True):
            kinds.plot([place] * len(by_row[row]), [found[name] for found in by_row[row]], "k.", markersize=4)
    kinds.set_xticks(range(len(names)), ["drawers, looks\nof the questions", *(f"answers:\n{name}" for name in KINDS)])
    kinds.legend(loc="lower left", fontsize="small")
    figure.savefig(path, dpi=110)


def draw_ablation(path: Path) -> None:
    """What each row reaches: a bar for the mean over seeds, and a dot for every seed."""
    shown: dict[str, dict[str, list[float]]] = {}
    for folder, row, _ in runs():
        scores = success(folder)
        shares = {name: scores[mode]["all"]["rate"] for name, mode in DRAWN.items()}
        if is_there(name := f"{folder}/questions_unseen"):
            answers = load(name)["total"]
            shares["questions,\nunseen looks"] = answers["right"] / answers["n"]
        for name, reached in shares.items():
            shown.setdefault(row, {}).setdefault(name, []).append(100 * reached)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(shown)
    for number, (row, found) in enumerate(sorted(shown.items(), key=lambda entry: entry[0] == "openvla-plus")):
        places = [group + (number - (len(shown) - 1) / 2) * width for group in range(len(found))]
        axes.bar(places, [sum(seeds) / len(seeds) for seeds in found.values()], 0.9 * width, label=row)
        for place, seeds in zip(places, found.values(), strict=True):
            axes.plot([place] * len(seeds), seeds, "k.", markersize=4)
    names = list(next(iter(shown.values())))
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="%", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


TABLES: dict[str, tuple[str, Callable[[], Rows]]] = {
    "ablation": (
        "row | seed | matching | other words | background masked | looks of the questions | unseen looks",
        scores,
    ),
    "ablation_kept": (
        "row | seed | answers, home | broad | unseen | error of actions, home | broad | unseen",
        kept,
    ),
    "ablation_differences": (
        "question | rows | outcome | seeds | difference in points (95 %) | p, corrected",
        differences,
    ),
    "ablation_probes": (
        "row | seed | DINO, broad | SigLIP, broad | both, broad | DINO, unseen | SigLIP, unseen | both, unseen",
        probes,
    ),
    "ablation_mixtures": (
        "row | seed | matching | looks of the questions | error of actions, broad | points answered | attributes | "
        "relations | states",
        mixtures,
    ),
    "aim": ("places | off, median | pick up | move near", aim),
    "ablation_points": (
        "row | seed | matching | looks of the questions | unseen looks | off, looks of the questions | unseen",
        points,
    ),
    "picking": (
        "trained with | error of actions, home | done | with the expert's x and y | with its z | its gripper",
        picking,
    ),
    "new_objects": (
        "row | seed | new objects | told the other | with the expert's x and y | familiar objects | told the other | "
        "answers, home | broad",
        new_objects,
    ),
    "new_objects_compared": (
        "seed | both | `openvla-plus` alone | `openvla-ds` alone | neither | p",
        new_objects_compared,
    ),
    "ablation_beside_paper": (
        "row | seeds of ours | II: matching, paper | ours | III: masked, paper | ours | III: variants, paper | ours | "
        "IV: paraphrased, paper | ours",
        beside_paper,
    ),
    "ablation_costs": ("row | training, 10¹² FLOP | passes an action | ms an action (median) | p95", costs),
}
