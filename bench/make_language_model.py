"""A language model of the shape of GPT-2 small, trained for some minutes on texts of one's own.

usage: python -P bench/make_language_model.py OUT_DIR [TEXT_DIR] [--minutes 7] [--threads 1]

No weights can be had without a download, so that a small model is trained: a byte-pair vocabulary
of 50,257 tokens, made from the texts, and two blocks of width 768 whose table of tokens is also the
head, as in GPT-2. Ten blocks with random weights follow, whose last products are zero: they take
the time of a block and change nothing. Logits and hidden states are therefore those of a trained
model, though of a weak one, and a token costs what one of GPT-2 small costs.

TEXT_DIR is searched for files .rst, .txt and .md, also gzipped; the default is what
`apt install linux-doc` puts there, 40 MB without the translations. Each twentieth file is held out.
OUT_DIR gets `config.json` and `model.safetensors` of GPT2LMHeadModel, `tokenizer.json`, and
`held_out.npy`, the tokens of the files that were held out.

Needs torch, transformers and tokenizers.
"""
import argparse
import glob
import gzip
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import restart_with, thread_environment

TEXTS = "/usr/share/doc/linux-doc*/Documentation"
ENDINGS = (".rst", ".txt", ".md", ".rst.gz", ".txt.gz", ".md.gz")
N_TOKENS, WIDTH, N_TRAINED, N_LAYERS = 50_257, 768, 2, 12
LENGTH, BATCH, N_NEGATIVES = 128, 8, 2048
END = "<|endoftext|>"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("texts", nargs="?", default=TEXTS)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    restart_with(thread_environment(args.threads) | {"TOKENIZERS_PARALLELISM": "false"})
    os.makedirs(args.out, exist_ok=True)
    train, held_out = tokens(args)
    model = trained(train, held_out, args)
    deepened(model, args.seed).save_pretrained(args.out)
    np.save(f"{args.out}/held_out.npy", held_out)


def tokens(args):
    """Ids of the tokens of the training files and of the others; the vocabulary is written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    files = sorted(path for folder in glob.glob(args.texts) for path in Path(folder).rglob("*")
                   if path.name.endswith(ENDINGS) and "translations" not in path.parts)
    if not files:
        raise SystemExit(f"{args.texts} has no texts; apt install linux-doc")
    np.random.default_rng(args.seed).shuffle(files)
    texts = [text_of(path) for path in files]
    n_held = len(texts) // 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts[n_held:], trainer)
    tokenizer.save(f"{args.out}/tokenizer.json")
    end = [tokenizer.token_to_id(END)]
    held_out, train = (np.concatenate([np.array(end + tokenizer.encode(text).ids, np.int32)
                                       for text in part])
                       for part in (texts[:n_held], texts[n_held:]))
    print(f"{len(files)} files, {tokenizer.get_vocab_size()} different tokens, {len(train):,} to "
          f"train on, {len(held_out):,} held out", flush=True)
    return train, held_out


def text_of(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def config(n_layers):
    from transformers import GPT2Config

    return GPT2Config(vocab_size=N_TOKENS, n_embd=WIDTH, n_head=12, n_layer=n_layers,
                      n_positions=1024, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                      bos_token_id=0, eos_token_id=0)


def trained(train, held_out, args):
    """The model of the first blocks, by a softmax over the target and sampled tokens."""
    import torch
    from torch.nn.functional import embedding
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = GPT2LMHeadModel(config(N_TRAINED))
    table = model.transformer.wte.weight
    others = [p for p in model.parameters() if p is not table]
    optimizers = torch.optim.AdamW(others, 1e-3, betas=(0.9, 0.98)), \
        torch.optim.SparseAdam([table], 1e-3, betas=(0.9, 0.98))
    counts = np.bincount(train, minlength=N_TOKENS) + 1.0
    q = torch.from_numpy(counts**0.75 / (counts**0.75).sum())
    log_expected = torch.log(N_NEGATIVES * q).float()
    blocks = train[:len(train) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    order, place, step = rng.permutation(len(blocks)), 0, 0
    begin, mean = time.process_time(), None
    while (used := (time.process_time() - begin) / (60 * args.minutes)) < 1:
        if place + BATCH > len(order):
            order, place = rng.permutation(len(blocks)), 0
        batch = torch.from_numpy(blocks[order[place:place + BATCH]].astype(np.int64))
        place += BATCH
        target = batch[:, 1:].reshape(-1)
        drawn = torch.multinomial(q, N_NEGATIVES, replacement=True)
        given = embedding(batch[:, :-1], table, sparse=True)
        hidden = model.transformer(inputs_embeds=given, use_cache=False)[0].reshape(-1, WIDTH)
        positive = (hidden * embedding(target, table, sparse=True)).sum(1)
        negative = hidden @ embedding(drawn, table, sparse=True).T - log_expected[drawn]
        negative.masked_fill_(drawn[None] == target[:, None], float("-inf"))
        logits = torch.cat([positive[:, None], negative], 1)
        loss = (torch.logsumexp(logits, 1) - positive).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, (step + 1) / 50) * max(0.02, 1 - used)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 100 == 0:
            print(f"step {step}, {used:.0%} of the time, loss {mean:.3f}", flush=True)

    with torch.inference_mode():
        part = torch.from_numpy(held_out[:64 * LENGTH].reshape(-1, LENGTH).astype(np.int64))
        loss = model.eval()(part, labels=part).loss.item()
    print(f"{step} steps of {BATCH * LENGTH} tokens; loss of held-out texts {loss:.3f}, "
          f"perplexity {np.exp(loss):.0f}", flush=True)
    return model


def deepened(model, seed):
    """The same model with the blocks of GPT-2 small, of which the others change nothing."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(seed + 1)
    deep = GPT2LMHeadModel(config(N_LAYERS))
    deep.load_state_dict(model.state_dict(), strict=False)
    for block in deep.transformer.h[N_TRAINED:]:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return deep.eval()


if __name__ == "__main__":
    main()
