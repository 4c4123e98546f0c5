"""The command line.  Everything heavy is imported inside a command: ``isthmus --help`` stays fast.

Exit codes: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from isthmus.data.events import Events
    from isthmus.data.split import Split
    from isthmus.data.synthetic import World
    from isthmus.experiment import Comparison, Recipe, Whole

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="One recommender for all your domains, and proof, domain by domain, that sharing helped.\n\n"
    "Start with [bold]isthmus demo[/], then [bold]isthmus compare events.parquet --user uid --item iid --domain market --time ts[/].",
)

Source = Annotated[
    str,
    typer.Argument(
        help="A parquet or csv file, a folder, a glob, or a source: xmrec, ciao, epinions, douban, movielens, amazon14, "
        "huawei_digix, world."
    ),
]
User = Annotated[str, typer.Option(help="Column of the user ids.")]
Item = Annotated[str, typer.Option(help="Column of the item ids.")]
DomainColumn = Annotated[str, typer.Option("--domain", help="Column of the domains (market, scenario, category, app).")]
Time = Annotated[str | None, typer.Option(help="Column of the times; without it only the order within the given split counts.")]
Label = Annotated[str | None, typer.Option(help="Column of 0/1 clicks or of ratings; without it every event is a positive.")]
Context = Annotated[list[str] | None, typer.Option(help="Column that varies by event; may be given several times.")]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        help="name=value; more of what a source takes, such as label=click for ciao, or behaviour=kind, items=items.parquet, "
        "time_unit=ms for your own files; may be given several times.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Ray = Annotated[
    bool,
    typer.Option("--ray", help="Several parts at once on a Ray cluster: that of RAY_ADDRESS, one that runs here, or this machine."),
]
Gpus = Annotated[float | None, typer.Option(min=0, help="Of each part or process on Ray, such as 0.5; default: 1 where there are any.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="name=value; a setting of fit or of the model, may be given several times.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per network.")] = 3,
    serve: Annotated[bool, typer.Option("--serve", help="Then serve the best network, with a page to try it.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the service.")] = 8000,
) -> None:
    """Compare nine recommenders on a made-up world of three markets: a small one beside two large ones.

    Example:  [bold]isthmus demo --serve[/]
    """
    from isthmus.data.synthetic import demo_world

    console = _console()
    console.print("A made-up world of three markets: two large, one small, with tastes in common.", highlight=False)
    world = demo_world()
    recipe = _demo_recipe(tuple(range(seeds)))
    comparison = _run(recipe, out, console, events=world.events)
    _best_reachable(world, comparison, console)
    if serve:
        from isthmus.examples.demo_bundle import demo_bundle
        from isthmus.serve.run import open_histories, run
        from isthmus.serve.service import Settings

        bundle = demo_bundle(out, typer.echo)
        console.print(f"{bundle} is served: open http://127.0.0.1:{port} (Ctrl-C ends it)", highlight=False)
        run(Settings([bundle]), open_histories(str(out / "events.db")), "127.0.0.1", port)


@app.command()
def doctor(
    source: Source,
    user: User = "user",
    item: Item = "item",
    domain: DomainColumn = "domain",
    time: Time = None,
    label: Label = None,
    context: Context = None,
    more: With = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a data set: sizes, overlaps, label rates, time spans, cold starts, duplicates, and what would leak.

    Example:  [bold]isthmus doctor events.parquet --user uid --item iid --domain market --time ts[/]
    """
    from isthmus.data.doctor import examine

    events, split = _load(_source(source, user, item, domain, time, label, context, more))
    report = examine(events, split) if split is not None else examine(events)
    if json:
        import json as writer

        typer.echo(writer.dumps(report.to_dict(), indent=1, ensure_ascii=False, default=str))
    else:
        typer.echo(report.to_text())


@app.command()
def prepare(
    source: Source,
    out: Out,
    user: User = "user",
    item: Item = "item",
    domain: DomainColumn = "domain",
    time: Time = None,
    label: Label = None,
    context: Context = None,
    more: With = None,
    split: Annotated[str | None, typer.Option(help="global_time, leave_last, random; default: by time when there is time.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Read, split and encode events into a folder that training reads from disk.

    Example:  [bold]isthmus prepare events.parquet --user uid --item iid --domain market --time ts -o data/[/]
    """
    from isthmus.data.encode import encode
    from isthmus.data.rules import make_split

    events, brought = _load(_source(source, user, item, domain, time, label, context, more))
    chosen = make_split(events, split, brought=brought)
    dataset = encode(events, chosen, out, overwrite=overwrite)
    _console().print(
        f"{len(events):,} events, {len(dataset.schema.domains)} domains -> {out}   split {chosen.rule} ({chosen.hash})", highlight=False
    )
    _console().print(chosen.summary(events))


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="A folder made by `isthmus prepare`.")],
    out: Out,
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name; `isthmus models` lists them.")] = "mmoe",
    task: Annotated[str | None, typer.Option(help="ctr, rating, retrieval, next_item; default: by labels and model.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is random; default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or mps.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted fit stopped.")] = False,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="Write TensorBoard files too.")] = None,
    ddp: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of this machine that train together; --set sharded=true splits large tables among them."),
    ] = None,
    ray: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on a Ray cluster (of RAY_ADDRESS, one that runs here, or this machine) that train together."),
    ] = None,
    gpus: Gpus = None,
    settings: Sets = None,
) -> None:
    """Train one model; Ctrl-C keeps a checkpoint, --resume goes on from it.

    On several machines start it with torchrun, the folder of the run on a disk that all of them see:
    torchrun --nnodes 2 --nproc-per-node 8 ... -m isthmus.cli fit data/ ...
    or on a Ray cluster with --ray; each process gets as many CPUs as --set threads=... says, else one.

    Example:  [bold]isthmus fit data/ --model mmoe -o runs/mmoe --set experts=8 --set lr=2e-3[/]
    """
    from isthmus.cluster import fit_together
    from isthmus.data.dataset import Dataset
    from isthmus.errors import ConfigError
    from isthmus.fit import How, build
    from isthmus.fit import fit as train
    from isthmus.task import default_task, get_task

    if ray is not None and (ddp is not None or "RANK" in os.environ):
        raise ConfigError("--ray beside --ddp or torchrun", "one of them to start the processes", "leave one out")
    dataset = Dataset.load(data)
    how, args = _of_fit_and_model(settings)
    options = {"epochs": epochs, "seed": seed, "device": device, "tensorboard": tensorboard}
    for name, value in options.items():
        if value is not None and name in how:
            raise ConfigError(f"--{name} {value} and --set {name}={how[name]}", "one of them", "leave one out")
    asked = How(**how | {name: value for name, value in options.items() if value is not None})
    built = build(model, dataset.schema, args, seed=asked.seed)
    job = get_task(task) if task else default_task(dataset.schema, built.tasks)
    if ddp is not None and "RANK" not in os.environ:  # all that is wrong with what was asked has been told, once
        del built
        _together(ddp)
        return
    if ray is not None:
        run = fit_together(built, dataset, job, asked, out, ranks=ray, gpus=gpus, resume=resume)
    else:
        run = train(built, dataset, job, asked, out, resume=resume)
    if os.environ.get("RANK", "0") == "0":
        watched = how.get("monitor") or job.metrics[0]
        _console().print(f"kept epoch {run.best.epoch + 1}: validation {watched} {run.best.value:.4f} -> {out}", highlight=False)


@app.command()
def tune(
    data: Annotated[Path, typer.Argument(help="A folder made by `isthmus prepare`.")],
    space: Annotated[Path, typer.Argument(help="What to try (.toml).")],
    out: Out,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted search, or with more trials.")] = False,
    gpus: Gpus = None,
) -> None:
    """Search one model's settings by their value on validation, with Optuna and Ray Tune; the test part is never read.

    The space names a model, and for settings of the model and of fit a value, choices or a range:

      \\[tune]
      trials = 50
      \\[model]
      name = "mmoe"
      experts = {choices = [2, 4, 8]}
      \\[fit]
      epochs = 10
      lr = {from = 1e-4, to = 1e-1, log = true}

    Example:  [bold]isthmus tune data/ space.toml -o runs/tune[/]
    """
    from isthmus.data.dataset import Dataset
    from isthmus.space import read_space
    from isthmus.tune import search

    found = search(Dataset.load(data), read_space(space), out, resume=resume, gpus=gpus, say=typer.echo)
    _print_frame(found.table().head(10).drop("error"), float_precision=6)
    typer.echo(f"best {found.metric} on validation {found.best.value:.4f} -> {out / 'best.toml'}")
    typer.echo(f"isthmus fit {data} {found.to_options()} -o ...")


@app.command()
def adapt(
    run: Annotated[Path, typer.Argument(help="A folder made by `isthmus fit`.")],
    source: Source,
    base: Annotated[Path, typer.Option(help="The data folder the run was fitted on.")],
    out: Out,
    domain: Annotated[list[str] | None, typer.Option(help="A new domain, may be given several times; default: all new ones.")] = None,
    user: User = "user",
    item: Item = "item",
    domain_column: Annotated[str, typer.Option(help="Column of the domains.")] = "domain",
    time: Time = None,
    label: Label = None,
    context: Context = None,
    more: With = None,
    split: Annotated[str | None, typer.Option(help="global_time, leave_last, random; default: by time when there is time.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted adaptation stopped.")] = False,
    settings: Sets = None,
) -> None:
    """Take a trained model to a new domain: only what is the domain's own is trained, the old domains' scores stay.

    The events hold the new domain, and the old ones too where its users' histories shall be known.  The encoded data
    go into the folder data of the new run.

    Example:  [bold]isthmus adapt runs/mmoe new.parquet --base data/ --domain books --label click --time ts -o runs/books[/]
    """
    from isthmus.adapt import adapt as compute
    from isthmus.adapt import settings_of
    from isthmus.data.dataset import Dataset
    from isthmus.data.encode import encode
    from isthmus.data.rules import make_split
    from isthmus.fit import load_run

    trained, before = load_run(run), Dataset.load(base)
    if resume and (out / "data" / "manifest.json").exists():
        dataset = Dataset.load(out / "data")
    else:
        events, brought = _load(_source(source, user, item, domain_column, time, label, context, more))
        chosen = make_split(events, split, brought=brought)
        dataset = encode(events, chosen, out / "data", base=before, overwrite=not (out / "run.json").exists())
    how = settings_of(trained, _settings(settings))
    adapted = compute(trained, dataset, before, domains=domain, how=how, out=out, resume=resume)
    _console().print(adapted.to_text(), highlight=False)


@app.command()
def adapt_curve(
    source: Source,
    domain: Annotated[str, typer.Option(help="The domain that is to be new.")],
    size: Annotated[list[int], typer.Option(min=1, help="Its training events, may be given several times.")],
    out: Out,
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name.")] = "mmoe",
    user: User = "user",
    item: Item = "item",
    domain_column: Annotated[str, typer.Option(help="Column of the domains.")] = "domain",
    time: Time = None,
    label: Label = None,
    context: Context = None,
    more: With = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    settings: Sets = None,
) -> None:
    """Quality and seconds in a new domain by its number of events: adapted, from scratch, and retrained on everything.

    Writes curve.parquet and curve.svg.

    Example:  [bold]isthmus adapt-curve events.parquet --domain books --size 300 --size 3000 --label click --time ts -o runs/curve[/]
    """
    from isthmus import storage
    from isthmus.adaptation_curve import adaptation_curve, curve_insight, summary
    from isthmus.data import split as splits
    from isthmus.how import How
    from isthmus.report.looks import look

    events, brought = _load(_source(source, user, item, domain_column, time, label, context, more))
    chosen = brought or splits.default(events)
    how, args = _of_fit_and_model(settings)
    frame = adaptation_curve(events, chosen, domain, size, model, args, how=How.of(how), seeds=range(seeds), say=typer.echo)
    out.mkdir(parents=True, exist_ok=True)
    with storage.whole_file(out / "curve.parquet") as path:
        frame.write_parquet(path)
    with storage.whole_file(out / "curve.svg") as path:
        path.write_text(look(curve_insight(frame, domain)), encoding="utf-8")
    _print_frame(summary(frame), float_precision=4)


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="A folder made by `isthmus fit`.")],
    data: Annotated[Path, typer.Option(help="The data folder the run was fitted on.")],
    out: Out = Path("scores.parquet"),
    part: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
) -> None:
    """Score a part of the data with a fitted model.

    Example:  [bold]isthmus score runs/mmoe --data data/ -o scores.parquet[/]
    """
    from isthmus.data.dataset import Dataset
    from isthmus.fit import load_run
    from isthmus.score import score as compute

    loaded = load_run(run)
    scores = compute(loaded.model, Dataset.load(data), part, task=loaded.task, how=loaded.how)
    scores.save(out)
    _console().print(f"{len(scores.frame):,} rows of scores ({scores.kind}) -> {out}", highlight=False)


@app.command()
def measure(
    scores: Annotated[Path, typer.Argument(help="A file made by `isthmus score`, or another library's scores with the same columns.")],
    metric: Annotated[list[str] | None, typer.Option("--metric", help="E.g. auc, ndcg@10; may be given several times.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the table as parquet too.")] = None,
) -> None:
    """Measure scores: metric x domain x user state, with 95 % intervals over users.

    Example:  [bold]isthmus measure scores.parquet --metric ndcg@10 --metric recall@10[/]
    """
    from isthmus import storage
    from isthmus.measure import measure as compute
    from isthmus.scores import Scores

    loaded = Scores.load(scores)
    default = ("auc", "logloss") if loaded.kind == "rows" else ("ndcg@10", "recall@10", "mrr")
    frame = compute(loaded, tuple(metric) if metric else default)
    if out is not None:
        with storage.whole_file(out) as path:
            frame.write_parquet(path)
    _print_frame(frame)


@app.command()
def retrieve(
    run: Annotated[Path, typer.Argument(help="A folder made by `isthmus fit`.")],
    data: Annotated[Path, typer.Option(help="The data folder the run was fitted on.")],
    domain: Annotated[str, typer.Option(help="The domain whose catalogue is searched.")],
    out: Out = Path("top.parquet"),
    user: Annotated[list[str] | None, typer.Option(help="A user's id, may be given several times; default: all of the domain's.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items per user.")] = 100,
    index: Annotated[str, typer.Option(help="auto, exact, ivf or hnsw; the last two need faiss.")] = "auto",
    catalogue: Annotated[str, typer.Option(help="Items known up to this part: train, valid or test.")] = "test",
    seen: Annotated[bool, typer.Option("--seen", help="Keep items that the user had before.")] = False,
) -> None:
    """Write the best items of a domain's whole catalogue for each user, as of now, without what she had before.

    Example:  [bold]isthmus retrieve runs/adi --data data/ --domain s1 -k 100 -o top.parquet[/]
    """
    from isthmus.data.dataset import Dataset
    from isthmus.fit import load_run
    from isthmus.lists import write_lists

    loaded = load_run(run)
    searched: Any = index
    rows, note = write_lists(
        out, loaded.model, Dataset.load(data), domain, user, k=k, index=searched, catalogue=catalogue, exclude_seen=not seen, how=loaded.how
    )
    _console().print(f"{rows:,} rows -> {out}   {note}", highlight=False)


@app.command()
def export(
    run: Annotated[list[Path], typer.Argument(help="A folder made by `isthmus fit`; or two: a retriever's and a ranker's.")],
    out: Out,
    data: Annotated[Path | None, typer.Option(help="The data folder the run was fitted on; default: where it was then.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the models' names.")] = None,
    titles: Annotated[str | None, typer.Option(help="FILE:ITEM:TITLE, a parquet or csv file with a text to show for each item.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="A folder made by `isthmus compare`: its verdicts go into the card.")] = None,
    model_licence: Annotated[str, typer.Option(help="Who may use the model; goes into the card.")] = "not stated",
    data_licence: Annotated[str, typer.Option(help="Who may use the data; goes into the card.")] = "not stated",
    measure: Annotated[bool, typer.Option(help="Measure the test part for the card.")] = True,
    half: Annotated[bool, typer.Option("--half", help="Embedding tables and item vectors in half precision.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Write all that serving needs into one folder: graphs, weights, ids, catalogues, indexes, histories and a card.

    Example:  [bold]isthmus export runs/adi runs/mmoe -o bundle/[/]
    """
    from isthmus.data.dataset import Dataset
    from isthmus.export.bundle import export as write
    from isthmus.export.card import Licences
    from isthmus.export.given import data_of, ledger_of, titles_of
    from isthmus.fit import load_run

    runs = [load_run(folder) for folder in run]
    path = write(
        runs,
        Dataset.load(data or data_of(run[0])),
        out,
        name=name,
        titles=None if titles is None else titles_of(titles),
        ledger=None if ledger is None else ledger_of(ledger),
        licences=Licences(model_licence, data_licence),
        measured=measure,
        half=half,
        overwrite=force,
        say=typer.echo,
    )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    _console().print(f"{size / 1e6:,.1f} MB -> {path}   serve it: isthmus serve {path}", highlight=False)


@app.command()
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Folders made by `isthmus export`; a user gets always the same one.")],
    host: Annotated[str, typer.Option(help="0.0.0.0: reachable from other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    share: Annotated[list[float] | None, typer.Option(help="Of users for each bundle, in their order; default: alike.")] = None,
    histories: Annotated[str, typer.Option(help="Live events: a SQLite file, redis://host:port/0, or none.")] = "isthmus-events.db",
    api_key: Annotated[str | None, typer.Option(envvar="ISTHMUS_API_KEY", help="Ask every client for this key.")] = None,
    watch: Annotated[float, typer.Option(min=0, help="Seconds between looks for a new bundle in the folders; 0: never.")] = 5.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that answer.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered together, at most.")] = 32,
    page: Annotated[bool, typer.Option(help="Show the page to try it, which can search users and items.")] = True,
) -> None:
    """Serve bundles over HTTP, with live histories and a page to try it; replace a bundle's folder and it is taken up.

    Example:  [bold]isthmus serve bundle/ --port 8000[/]
    """
    from isthmus.serve.run import open_histories, run
    from isthmus.serve.service import Settings

    settings = Settings(bundles, share, api_key, watch, batch, workers, page=page)
    run(settings, open_histories(histories), host, port)


@app.command()
def look(
    run: Annotated[Path, typer.Argument(help="A folder made by `isthmus fit`.")],
    data: Annotated[Path, typer.Option(help="The data folder the run was fitted on.")],
    user: Annotated[list[str] | None, typer.Option(help="A user's id, may be given several times; default: averages.")] = None,
    domain: Annotated[str | None, typer.Option(help="The one target domain to ask users about; default: all.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a page with figures too.")] = None,
) -> None:
    """Look inside a fitted model: on average, or for single users as of now.

    Example:  [bold]isthmus look runs/dacdr --data data/ --user u12 -o look.html[/]
    """
    from isthmus.data.dataset import Dataset
    from isthmus.fit import load_run
    from isthmus.inside import look_inside
    from isthmus.report import print_looks, write_looks

    loaded = load_run(run)
    found = look_inside(loaded.model, Dataset.load(data), user, domain, how=loaded.how)
    print_looks(found, _console())
    if out is not None:
        facts = (("model", type(loaded.model).__name__), ("run", str(run)), ("data", str(data)))
        _console().print(f"\npage: {write_looks(found, out, facts)}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    source: Annotated[str, typer.Argument(help="A recipe (.toml), or your own events (parquet or csv).")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to; default: runs/<name>.")] = None,
    user: User = "user",
    item: Item = "item",
    domain: DomainColumn = "domain",
    time: Time = None,
    label: Label = None,
    context: Context = None,
    more: With = None,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Only these models; may be given several times.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings per network.")] = None,
    cell: Annotated[list[str] | None, typer.Option("--cell", help="Only these cells; may be given several times.")] = None,
    ray: Ray = False,
    gpus: Gpus = None,
) -> None:
    """Compare models by domain, with the transfer ledger; finished parts are not run again.

    Examples:

      [bold]isthmus compare recipes/xmrec.toml[/]

      [bold]isthmus compare recipes/xmrec.toml --ray[/]

      [bold]isthmus compare events.parquet --user uid --item iid --domain market --time ts[/]
    """
    from isthmus.config import read_recipe
    from isthmus.errors import ConfigError

    events, split = None, None
    if source.endswith(".toml"):
        if more:
            raise ConfigError(f"--with {more[0]} beside a recipe", "what a source takes, for events", "write it into the recipe's [data]")
        recipe = read_recipe(source)
    else:
        asked = _source(source, user, item, domain, time, label, context, more)
        events, split = _load(asked)
        recipe = _own_recipe(source, asked, events)
    recipe = _narrowed(recipe, seeds, model, cell)
    _run(recipe, out or Path("runs") / recipe.name, _console(), events=events, split=split, ray=ray, gpus=gpus)


@app.command()
def reproduce(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name in recipes/, or its path; without it: list them.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to; default: runs/<name>.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings per network; default: the recipe's.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Only these lines; may be given several times.")] = None,
    cell: Annotated[list[str] | None, typer.Option("--cell", help="Only these cells; may be given several times.")] = None,
    ray: Ray = False,
    gpus: Gpus = None,
) -> None:
    """Run a paper's experiment and hold its printed numbers beside ours, domain by domain.

    Examples:

      [bold]isthmus reproduce[/]

      [bold]isthmus reproduce adi_table3 -o runs/adi_table3 --seeds 3[/]
    """
    from isthmus.config import published, read_published, recipe_folder

    if recipe is None:
        for name, title in published().items():
            typer.echo(f"{name:<16} {title}")
        typer.echo(f"recipes in {recipe_folder()}; run one with: isthmus reproduce <name>")
        return
    chosen = _narrowed(read_published(recipe), seeds, model, cell)
    _run(chosen, out or Path("runs") / chosen.name, _console(), ray=ray, gpus=gpus)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder made by `isthmus compare` or `isthmus demo`.")],
) -> None:
    """Draw a comparison's tables and page again from its kept parts; nothing is trained.

    Example:  [bold]isthmus report runs/demo[/]
    """
    from isthmus.experiment import recall
    from isthmus.report import print_report, write_page

    comparison = recall(folder)
    page = write_page(comparison, folder / "report.html")
    print_report(comparison, _console(), page)


@app.command()
def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every model with its paper, its jobs and what it reads.

    Example:  [bold]isthmus models[/]
    """
    from isthmus.models import available, describe

    rows: list[dict[str, Any]] = [describe(name) for name in available()]
    if json:
        import json as writer

        typer.echo(writer.dumps(rows, indent=1, ensure_ascii=False, default=str))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "jobs", "reads", "paper"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["kind"], ", ".join(row["tasks"]), ", ".join(row["needs"]) or "ids", row["paper"])
    _console().print(table)


def _together(processes: int) -> None:
    """This very command on several processes of this machine, as torchrun starts them.

    Raises:
        FitError: one of them failed; it has said why.
    """
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from isthmus.errors import FitError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "isthmus.cli", *sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        came = f"rank {rank} of {processes} ended with {failure.exitcode}"
        raise FitError(came, "all of them to train to the end", "see what it said above; go on with --resume") from None


def main() -> None:
    """Runs the command line; turns Isthmus' errors into a message and an exit code."""
    from isthmus.errors import ConfigError, IsthmusError

    try:
        if os.environ.get("WORLD_SIZE", "1") != "1" and sys.argv[1:2] != ["fit"]:
            came = f"isthmus {' '.join(sys.argv[1:2])} on {os.environ['WORLD_SIZE']} processes of torchrun"
            raise ConfigError(came, "isthmus fit, the one command that several processes share", "start it without torchrun")
        app(standalone_mode=True)
    except ConfigError as error:
        _fail(error, 2)
    except IsthmusError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was finished is kept", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


def _fail(error: Exception, code: int) -> None:
    from isthmus.errors import FollowerError

    if not isinstance(error, FollowerError):
        typer.echo(f"isthmus: {error}", err=True)
    sys.exit(code)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def _source(
    source: str,
    user: str,
    item: str,
    domain: str,
    time: str | None,
    label: str | None,
    context: list[str] | None,
    more: list[str] | None,
) -> tuple[str, dict[str, Any]]:
    """Which source and what it is asked for: a public set by name, or the user's own files."""
    from isthmus.data import sources

    given = _settings(more, "--with")
    if source in sources.available() and not Path(source).exists():
        return source, given
    columns = {"user": user, "item": item, "domain": domain, "time": time, "label": label, "context": tuple(context or ())}
    return "table", {"path": source, **columns, **given}


def _load(source: tuple[str, dict[str, Any]]) -> tuple[Events, Split | None]:
    from isthmus.data import sources

    loaded = sources.load(source[0], **source[1])
    return loaded.events, loaded.split


def _narrowed(recipe: Recipe, seeds: int | None, models: list[str] | None, cells: list[str] | None) -> Recipe:
    """What the options leave of a recipe."""
    import dataclasses

    if seeds is not None:
        recipe = dataclasses.replace(recipe, seeds=tuple(range(seeds)))
    recipe = recipe.only(models) if models else recipe
    return recipe.in_cells(cells) if cells else recipe


def _run(recipe: Recipe, out: Path, console: Console, **given: Any) -> Comparison | Whole:
    """Compare, print, write the page; ``given`` is what else ``compare`` takes."""
    from isthmus.experiment import check_writable
    from isthmus.experiment import compare as run
    from isthmus.report import print_report, write_page

    check_writable(out)
    comparison = run(recipe, out, say=lambda line: console.print(f"[dim]{line}[/]", highlight=False), **given)
    page = write_page(comparison, out / "report.html")
    print_report(comparison, console, page)
    return comparison


def _own_recipe(title: str, source: tuple[str, dict[str, Any]], events: Events) -> Recipe:
    """The default comparison of events that no recipe describes."""
    from isthmus.experiment import Recipe, default_models
    from isthmus.task import default_task

    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(title).stem) or "events"
    return Recipe(name, source[0], default_models(default_task(events.schema)), title=title, source_args=source[1])


def _demo_recipe(seeds: tuple[int, ...]) -> Recipe:
    """Shallow models and networks that judge clicks, small enough for two cores."""
    from isthmus.experiment import ModelSpec, Recipe

    small = {"hidden": [32], "tower": [16]}
    networks = {
        "cross_stitch": {"hidden": [32, 16]},
        "dnn": {"hidden": [64, 32]},
        "mmoe": small,
        "ple": small,
        "shared_bottom": {**small, "hidden": [64]},
        "star": {"hidden": [64, 32]},
    }
    shallow = (
        ModelSpec("popularity", control=None),
        ModelSpec("popularity", "popularity across", {"across": True}, control="popularity"),
        ModelSpec("bias_transfer", control=None),
    )
    return Recipe(
        "demo",
        "a made-up world, see isthmus.data.synthetic.demo_world",
        (*shallow, *(ModelSpec(name, args=args) for name, args in networks.items())),
        title="Three markets",
        split="global_time",
        split_args={"valid": 0.15, "test": 0.25},
        seeds=seeds,
        fit={"batch_size": 512, "lr": 0.01, "epochs": 12, "patience": 2, "threads": 1, "progress": False},
    )


def _best_reachable(world: World, comparison: Comparison | Whole, console: Console) -> None:
    """The world's true probabilities are known, and so is the best AUC that any model could have on the test rows."""
    from isthmus.data.split import TEST, global_time

    test = global_time(world.events, **comparison.recipe.split_args).part == TEST
    best = {name: world.best_auc(test & (world.events.domain == d)) for d, name in enumerate(world.events.schema.domain_names)}
    text = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
    console.print(f"[dim]the best AUC that the world's true probabilities allow: {text}[/]", highlight=False)


def _print_frame(frame: pl.DataFrame, **options: Any) -> None:
    """All rows and columns, with polars' display options beside."""
    import polars as pl

    shown: dict[str, Any] = {"tbl_rows": -1, "tbl_cols": -1, "tbl_width_chars": 200, **options}
    with pl.Config(**shown, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        typer.echo(str(frame))


def _of_fit_and_model(pairs: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """name=value pairs: settings of fit, and those of the model."""
    import dataclasses

    from isthmus.how import How

    given, names = _settings(pairs), {f.name for f in dataclasses.fields(How)}
    return {k: v for k, v in given.items() if k in names}, {k: v for k, v in given.items() if k not in names}


def _settings(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """``name=value`` pairs; values are read as TOML values, else as text."""
    import tomllib

    from isthmus.errors import ConfigError

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            example = "lr=2e-3" if option == "--set" else "label=click"
            raise ConfigError(f"{option} {pair!r}", "name=value", f"{option} {example}")
        try:
            found[name] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


if __name__ == "__main__":
    main()
