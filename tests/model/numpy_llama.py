"""LLaMA in float64 numpy, written from the formulas: the model that ours is held against.

It shares no code with `ffn_alloc.model` except the names in the parameter dict, takes unstacked
parameters ({"layers": {"0": ...}}), and loops over layers, sequences and heads. Parameters are
drawn here too, so that nothing about them depends on our initialisation.

Shapes: B batch, T positions, D d_model, N heads, K key/value heads, H head_dim, F FFN width.
"""

from typing import Any

import numpy as np

from ffn_alloc.config import ModelConfig

Params = dict[str, Any]


def random_params(model: ModelConfig, seed: int) -> Params:
    """Unstacked float32 parameters that keep every activation and logit near unit scale.

    RandomState, because numpy promises that its stream never changes: recordings depend on it.
    """
    random = np.random.RandomState(seed)
    D, H, V = model.d_model, model.head_dim, model.vocab_size

    def matrix(fan_in: int, fan_out: int, scale: float = 1.0) -> np.ndarray:
        values = random.standard_normal((fan_in, fan_out)) * scale / np.sqrt(fan_in)
        return values.astype(np.float32)

    def gain() -> Params:
        return {"gain": (1 + 0.2 * random.standard_normal(D)).astype(np.float32)}

    def layer(F: int) -> Params:
        params = {
            "attention_norm": gain(),
            "attention": {
                "query": matrix(D, model.num_heads * H),
                "key": matrix(D, model.num_kv_heads * H),
                "value": matrix(D, model.num_kv_heads * H),
                "out": matrix(model.num_heads * H, D),
            },
        }
        if F:
            params["ffn_norm"] = gain()
            params["ffn"] = {"gate": matrix(D, F), "up": matrix(D, F), "down": matrix(F, D, 2.0)}
        return params

    params = {
        "embedding": {"table": matrix(D, V).T.copy()},
        "layers": {str(i): layer(F) for i, F in enumerate(model.ffn_dims)},
        "final_norm": gain(),
    }
    if not model.tie_embeddings:
        params["unembedding"] = {"kernel": matrix(D, V)}
    return params


def logits(
    params: Params,
    tokens_BT: np.ndarray,
    model: ModelConfig,
    positions_BT: np.ndarray | None = None,
    segment_ids_BT: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [B, T, V] in float64."""
    if positions_BT is None:
        positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segment_ids_BT is None:
        segment_ids_BT = np.zeros_like(tokens_BT)
    sequences = zip(tokens_BT, positions_BT, segment_ids_BT, strict=True)
    return np.stack([_sequence_logits(params, *sequence, model) for sequence in sequences])


def loss(params: Params, tokens_BT: np.ndarray, targets_BT: np.ndarray, model: ModelConfig):
    """Mean negative log-likelihood in nats, float64."""
    return nll(logits(params, tokens_BT, model), targets_BT).mean()


def nll(logits_BTV: np.ndarray, targets_BT: np.ndarray) -> np.ndarray:
    """Negative log-likelihood [B, T] in float64."""
    logits_BTV = logits_BTV.astype(np.float64)
    shifted_BTV = logits_BTV - logits_BTV.max(axis=-1, keepdims=True)
    probability_BTV = np.exp(shifted_BTV) / np.exp(shifted_BTV).sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(probability_BTV, targets_BT[..., None], axis=-1)[..., 0])


def attention(q_TNH, k_TKH, v_TKH, segment_ids_T) -> np.ndarray:
    """Causal attention [T, N, H] of one sequence inside equal segment ids, query by query."""
    T, N, H = q_TNH.shape
    y_TNH = np.zeros((T, N, H))
    for n in range(N):
        kv_head = n // (N // k_TKH.shape[1])
        scores_TT = q_TNH[:, n] @ k_TKH[:, kv_head].T / np.sqrt(H)
        for t in range(T):
            seen = [s for s in range(t + 1) if segment_ids_T[s] == segment_ids_T[t]]
            weights = np.exp(scores_TT[t, seen] - scores_TT[t, seen].max())
            y_TNH[t, n] = weights / weights.sum() @ v_TKH[seen, kv_head]
    return y_TNH


def _sequence_logits(params, tokens_T, positions_T, segment_ids_T, model):
    T, H = len(tokens_T), model.head_dim
    x_TD = params["embedding"]["table"][tokens_T].astype(np.float64)
    for i, F in enumerate(model.ffn_dims):
        layer = params["layers"][str(i)]
        weights = layer["attention"]
        a_TD = _norm(x_TD, layer["attention_norm"], model)
        q_TNH, k_TKH, v_TKH = (
            (a_TD @ weights[role]).reshape(T, -1, H) for role in ("query", "key", "value")
        )
        q_TNH = _turn(q_TNH, positions_T, model.rope_theta)
        k_TKH = _turn(k_TKH, positions_T, model.rope_theta)
        y_TNH = attention(q_TNH, k_TKH, v_TKH, segment_ids_T)
        x_TD = x_TD + y_TNH.reshape(T, -1) @ weights["out"]
        if F:
            ffn = layer["ffn"]
            a_TD = _norm(x_TD, layer["ffn_norm"], model)
            gate_TF = a_TD @ ffn["gate"]
            swish_TF = gate_TF / (1 + np.exp(-gate_TF))
            x_TD = x_TD + (swish_TF * (a_TD @ ffn["up"])) @ ffn["down"]
    x_TD = _norm(x_TD, params["final_norm"], model)
    if model.tie_embeddings:
        return x_TD @ params["embedding"]["table"].T
    return x_TD @ params["unembedding"]["kernel"]


def _norm(x_TD, norm, model):
    scale_T1 = np.sqrt((x_TD**2).mean(axis=1, keepdims=True) + model.norm_epsilon)
    return x_TD / scale_T1 * norm["gain"]


def _turn(x_TNH, positions_T, theta):
    """Rotary positions: the pair (x[i], x[i + H/2]) as a complex number, turned by its angle."""
    half = x_TNH.shape[-1] // 2
    speeds = theta ** (-np.arange(half) / half)
    turns_T1F = np.exp(1j * positions_T[:, None, None] * speeds)
    z_TNF = (x_TNH[..., :half] + 1j * x_TNH[..., half:]) * turns_T1F
    return np.concatenate([z_TNF.real, z_TNF.imag], axis=-1)
