"""How many cache blocks an Optimum RBLN config gets: estimated from the memory there is, and compared with it if given.

Knows nothing of models' classes. Called by `model.py` where a compiled model is loaded.
"""

from __future__ import annotations

import dataclasses
import logging

from qwench.artifact.artifact import Artifact
from qwench.host import format_bytes
from qwench.program.cache_groups import windows_of
from qwench.rbln.config import RBLNDecoderOnlyModelForCausalLMConfig
from qwench.runtime.loading import memory_budget

logger = logging.getLogger(__name__)


def with_cache_blocks(artifact: Artifact, config: RBLNDecoderOnlyModelForCausalLMConfig) -> Artifact:
    """`artifact` with as many pages of cache as the resolved `config` has positions in its blocks.

    kvcache_num_blocks of `config`, else the estimate: (memory - packed weights - working buffers) / bytes of a block
    over all layers, 2 * layers * kv_heads * block_size * head_dim * bytes per value; but no more than full sequences
    for all rows need. Ranks share it, for they are on one machine. Logs what it found; warns when more was asked for
    than fits, or when less fits than full sequences for all rows need.
    """
    assert config.kvcache_block_size
    spec, page = artifact.program.spec, artifact.config.cache(1)
    num_groups, page_bytes = (
        len(windows_of(spec)),
        page.block_bytes(artifact.program),
    )  # a page is of one group's layers
    budget = memory_budget(artifact)
    block_bytes = num_groups * page_bytes * config.kvcache_block_size / page.block_size
    estimate = max(int(budget.rest // block_bytes), 0)
    blocks = config.kvcache_num_blocks or min(estimate, config.num_full_blocks)
    logger.info(
        "kvcache_num_blocks: estimated %d (%s available, less %s of weights and %s of working buffers, in blocks of %s "
        "for %d tokens); %d used, %s left",
        estimate, format_bytes(budget.available), format_bytes(budget.weights), format_bytes(budget.working),
        format_bytes(block_bytes), config.kvcache_block_size, blocks, format_bytes(budget.rest - blocks * block_bytes),
    )  # fmt: skip
    if blocks > estimate:
        logger.warning(
            "kvcache_num_blocks is %d, but memory holds %d: a full cache will be short of memory", blocks, estimate
        )
    elif blocks < config.num_full_blocks:
        logger.warning(
            "memory holds %d cache blocks, %d would hold a full sequence in each of %s rows: when it is full, rows "
            "wait and are computed again", blocks, config.num_full_blocks, config.batch_size,
        )  # fmt: skip
    pages = num_groups * -(-blocks * config.kvcache_block_size // page.block_size)
    if pages < artifact.config.blocks_of_one_sequence(spec):
        return artifact  # the engine says how much memory is missing
    memory = max(budget.available, budget.used + pages * page_bytes)
    given = dataclasses.replace(artifact.config, kvcache_num_blocks=pages, memory=memory)
    return dataclasses.replace(artifact, config=given)
