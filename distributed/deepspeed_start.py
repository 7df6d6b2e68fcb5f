"""What DeepSpeed would compile when it starts, though a training has no use for it, is left as it is.

Each costs every rank of every start about a second, or much more; neither changes a number of a training.
"""


def leave_operators_uncompiled() -> None:
    """Says that no operator of DeepSpeed's own can be used, of which it asks for one: an all-reduce for inference.

    Compiling that one takes half a minute and a C++ compiler, and a kill during it leaves a lock that stops all later
    starts. DeepSpeed's table of what can be used is filled here, because it would fill it by running a compiler for
    every operator that it has.
    """
    import deepspeed

    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def leave_muon_uncompiled() -> None:
    """Imports DeepSpeed's optimiser Muon as plain functions.

    DeepSpeed compares every optimiser with it, and importing it hands its functions to torch.compile, which loads all
    of torch's compiler. Our optimiser is always AdamW.
    """
    from deepspeed.runtime import compiler

    compiled, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compiled
