"""Every loss as its paper writes it: whole matrices or loops, in one process. This file holds no tests."""

import torch
import torch.nn.functional as F


def sigmoid(x, y, scale, bias, keys=None, duplicates="negatives"):
    """SigLIP, algorithm 1, one entry at a time."""
    total, n = 0.0, len(x)
    for i in range(n):
        for j in range(n):
            same = i == j or (keys is not None and bool((keys[i] == keys[j]).any()))
            if same and i != j and duplicates == "ignore":
                continue
            z = 1 if i == j or (same and duplicates == "positives") else -1
            total = total - F.logsigmoid(z * (scale * (x[i] * y[j]).sum() + bias))
    return total / n


def distillation(x, y, scale, teacher_x, teacher_y, teacher_scale):
    """MobileCLIP, equation 3."""
    student, teacher = scale * x @ y.T, teacher_scale * teacher_x @ teacher_y.T

    def divergence(s, t):
        return F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")

    return (divergence(student, teacher) + divergence(student.T, teacher.T)) / 2


def triplet(x, y, margin):
    """VSE++, equation 6, over a dense matrix."""
    similar = x @ y.T
    off = similar.masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf)
    hinge = sum((margin - similar.diagonal() + off.max(dim).values).clamp_min(0) for dim in (0, 1))
    return hinge.mean()


def triplet_of_all(x, y, margin):
    """VSE++, equation 5, one negative at a time, over their number."""
    similar, n, total = x @ y.T, len(x), 0.0
    for i in range(n):
        for k in range(n):
            if k != i:
                total = total + (margin - similar[i, i] + similar[i, k]).clamp_min(0)
                total = total + (margin - similar[i, i] + similar[k, i]).clamp_min(0)
    return total / (n * (n - 1))


def smoothed(x, y, scale, smoothing):
    """Cross entropy with torch's own label smoothing, both ways."""
    logits, target = scale * x @ y.T, torch.arange(len(x))
    both = [F.cross_entropy(part, target, label_smoothing=smoothing) for part in (logits, logits.T)]
    return (both[0] + both[1]) / 2


def nt_xent(first, second, temperature):
    """SimCLR, equation 1, one view at a time."""
    z, n, total = torch.cat([first, second]), len(first), 0.0
    for i in range(2 * n):
        logits = torch.stack([(z[i] * z[k]).sum() / temperature for k in range(2 * n) if k != i])
        total = total + logits.logsumexp(0) - (z[i] * z[(i + n) % (2 * n)]).sum() / temperature
    return total / (2 * n)


def others(critic):
    """The entries (N (N - 1),) of a critic matrix that are no pairs."""
    return critic[~torch.eye(len(critic), dtype=torch.bool)]


def donsker_varadhan(critic):
    """MINE, equation 10."""
    return critic.diagonal().mean() - others(critic).exp().mean().log()


def smile(critic, clip):
    """SMILE, equation 15: its value."""
    return critic.diagonal().mean() - others(critic).clamp(-clip, clip).exp().mean().log()


def jensen_shannon(critic):
    """The bound whose gradient SMILE follows (f-GAN)."""
    return -F.softplus(-critic.diagonal()).mean() - F.softplus(others(critic)).mean()


def sogclr(x, y, scale, u_x, u_y, gamma, rho, eps, estimator=True):
    """FastCLIP-v3, one sample at a time: value, what its gradient is of, and the new memories; u of None is a first sight."""
    n, value, surrogate, kept = len(x), 0.0, 0.0, ([], [])
    for side, (a, b, u) in enumerate(((x, y, u_x), (y, x, u_y))):
        for i in range(n):
            g = torch.stack([(scale * (a[i] @ b[j] - a[i] @ b[i])).exp() for j in range(n) if j != i]).mean()
            now = g.detach() if u is None else (1 - gamma) * u[i] + gamma * g.detach()
            kept[side].append(now)
            value = value + (eps + now).log()
            surrogate = surrogate + g / (eps + now)
    value, surrogate = value / (2 * n), surrogate / (2 * n)
    # the value with the estimator's gradient
    mean = value + surrogate - surrogate.detach()
    return (mean + rho) / scale, [torch.stack(part) for part in kept]
