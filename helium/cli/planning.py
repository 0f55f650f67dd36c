"""``helium explain | profile``."""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing

from helium.cli import inputs
from helium.cli.options import Options, Session, load_tokenizer
from helium.cost.profile import Profile, operator_signatures
from helium.dsl.graph import Graph
from helium.errors import ConfigError
from helium.explain import explain as explain_plan
from helium.optimizer.driver import optimize, optimize_plan
from helium.planner import plan_workflow
from helium.runtime import ProfileStore, PromptCache
from helium.runtime.profile_store import workflow_signature
from helium.templates.tokenizer import WordTokenizer


def explain(options: Options) -> int:
    """Prints how a workflow would be run; calls nothing."""
    graph, batch = _load(options)
    profile = ProfileStore().load(workflow_signature(graph.plan))
    if options.revision is None:
        optimized = optimize(graph.compile(**batch))
    else:
        with closing(PromptCache(options.cache, max_bytes=options.cache_bytes)) as cache:
            view = cache.view(options.revision, options.tenant)
            optimized = optimize(graph.compile(**batch), cache=view)
    plan = plan_workflow(
        optimized.compiled,
        load_tokenizer(options.tokenizer) or WordTokenizer(),
        workflow=options.workflow.rpartition(":")[2],
        profile=profile,
        num_engines=options.engines,
    )
    print(explain_plan(plan, options.format, passes=optimized.passes, original=graph.plan))
    return 0


def profile(options: Options) -> int:
    """Prints what is known of a workflow's output lengths, after a sample run if asked for."""
    graph, batch = _load(options)
    if options.engine or options.ray:
        sample = inputs.first_rows(batch, options.rows)
        # Not from the cache: what is known already teaches nothing.
        failures = asyncio.run(_sample(options, graph, sample))
        if failures:
            raise ConfigError(f"profile: {failures} rows of the sample failed; see the messages")
    known = ProfileStore().load(workflow_signature(graph.plan))
    _print_profile(graph, known)
    return 0


async def _sample(options: Options, graph: Graph, batch: inputs.Batch) -> int:
    async with Session(options, has_cache=False) as runtime:
        result = await runtime.run(graph, batch, name=options.workflow.rpartition(":")[2])
    for failure in result.failures:
        reason = f"{failure.operator}[{failure.row}] failed: {failure.reason}"
        print(reason, file=sys.stderr)
    return len(result.failures)


def _print_profile(graph: Graph, known: Profile) -> None:
    # Profiles are of the plan that runs, where equal operators are one.
    plan = optimize_plan(graph.plan).plan
    signatures = operator_signatures(plan)
    print(f"{'operator':32} {'outputs':>8} {'mean':>8} {'p50':>8} {'p90':>8}  (tokens)")
    for name in signatures:
        lengths = known.outputs.get(signatures[name])
        if lengths is not None:
            p50, p90 = lengths.quantile(0.5), lengths.quantile(0.9)
            print(f"{name:32} {lengths.count:>8} {lengths.mean:>8.1f} {p50:>8.0f} {p90:>8.0f}")


def _load(options: Options) -> tuple[Graph, inputs.Batch]:
    graph = inputs.load_workflow(options.workflow)
    inputs.import_functions(options.imports)
    return graph, inputs.load_batch(options.batch, options.set)
