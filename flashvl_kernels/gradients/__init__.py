"""Hand-written backward passes: what an op's `OpSpec` names as its `backward`.

Each is the op's derivative in formulas. It computes again only what is small beside the products
(norms, the inner rows of an MLP), where autograd through the reference would run all of it once
more and keep every intermediate result. Rows are the leading axes laid end to end, as in the
kernels. What one of these cannot do it leaves to the recomputed reference (NotImplemented).
"""
