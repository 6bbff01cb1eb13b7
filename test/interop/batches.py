"""Runs OpenAI's Python SDK, unmodified, against the files and batches of a Batchyard.

    python batches.py http://127.0.0.1:8080

Every step that differs from what the SDK documents ends the program with a traceback.
"""

import json
import sys
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused")
CHAT = "/v1/chat/completions"


def line(custom_id, model="llama-3", **body):
    return {"custom_id": custom_id, "method": "POST", "url": CHAT,
            "body": {"model": model, "messages": [{"role": "user", "content": "Say hello."}], **body}}


def upload(lines, name="input.jsonl", **options):
    text = "".join((l if isinstance(l, str) else json.dumps(l)) + "\n" for l in lines)
    return client.files.create(file=(name, text.encode()), purpose="batch", **options)


def create(file, **options):
    options = {"endpoint": CHAT, "completion_window": "24h", **options}
    return client.batches.create(input_file_id=file.id, **options)


def wait(batch, seconds=90):
    end = time.time() + seconds
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.time() < end, batch
        time.sleep(0.3)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        assert counts.completed + counts.failed <= max(counts.total, 0), batch
    return batch


def lines_of(file_id):
    if file_id is None:
        return []
    return [json.loads(l) for l in client.files.content(file_id).text.splitlines()]


def raises(kind, call, *args, code=None, param=None, **options):
    try:
        call(*args, **options)
    except kind as e:
        assert e.request_id, e
        assert e.body["message"] and e.body["type"], e.body
        assert code is None or e.code == code, e.body
        assert param is None or e.param == param, e.body
        return e
    raise AssertionError(f"{kind.__name__} was expected")


def files():
    f = upload([line("a")], expires_after={"anchor": "created_at", "seconds": 3600})
    assert (f.object, f.purpose, f.filename, f.status) == ("file", "batch", "input.jsonl", "processed"), f
    assert f.expires_at == f.created_at + 3600, f
    assert client.files.retrieve(f.id) == f
    content = client.files.content(f.id)
    assert len(content.read()) == f.bytes
    more = [upload([line(str(i))]) for i in range(4)]
    listed = [x.id for x in client.files.list(limit=2, purpose="batch")]
    assert listed[:5] == [x.id for x in reversed(more)] + [f.id], listed
    oldest = [x.id for x in client.files.list(limit=3, order="asc")]
    assert oldest == list(reversed([x.id for x in client.files.list()])), oldest
    gone = client.files.delete(f.id)
    assert (gone.id, gone.deleted, gone.object) == (f.id, True, "file"), gone
    raises(openai.NotFoundError, client.files.retrieve, f.id, code="not_found")
    raises(openai.NotFoundError, client.files.content, f.id)
    raises(openai.NotFoundError, client.files.delete, f.id)
    raises(openai.BadRequestError, client.files.create, file=("x", b"{}"), purpose="fine-tune", param="purpose")


def completed():
    f = upload([line(f"q-{i}") for i in range(40)])
    b = create(f, metadata={"team": "search"}, output_expires_after={"anchor": "created_at", "seconds": 7200})
    assert b.status == "validating" and b.object == "batch" and b.metadata == {"team": "search"}, b
    client.files.delete(f.id)  # the batch keeps what it needs
    b = wait(b)
    assert b.status == "completed" and b.error_file_id is None and b.errors is None, b
    assert b.model == "llama-3" and b.created_at <= b.in_progress_at <= b.finalizing_at <= b.completed_at, b
    assert (b.request_counts.total, b.request_counts.completed, b.request_counts.failed) == (40, 40, 0), b
    out = lines_of(b.output_file_id)
    assert sorted(l["custom_id"] for l in out) == sorted(f"q-{i}" for i in range(40))
    assert all(l["error"] is None and l["response"]["status_code"] == 200 for l in out)
    tokens = sum(l["response"]["body"]["usage"]["total_tokens"] for l in out)
    assert b.usage.total_tokens == b.usage.input_tokens + b.usage.output_tokens == tokens, (b.usage, tokens)
    described = client.files.retrieve(b.output_file_id)
    assert described.purpose == "batch_output" and 7100 < described.expires_at - described.created_at < 7300, described
    raises(openai.ConflictError, client.batches.cancel, b.id)


def invalid():
    f = upload([line("a"), "{broken", line("a"), {**line("b"), "url": "/v1/embeddings"}, line("c")])
    b = wait(create(f))
    assert b.status == "failed" and b.failed_at and b.output_file_id is None, b
    assert [e.line for e in b.errors.data] == [2, 3, 4], b.errors
    assert b.errors.data[1].code == "duplicate_custom_id", b.errors
    b = wait(create(f, extra_body={"skip_bad_lines": True}))
    assert b.status == "completed" and b.request_counts.total == 2 and len(b.errors.data) == 3, b
    assert sorted(l["custom_id"] for l in lines_of(b.output_file_id)) == ["a", "c"]
    assert wait(create(upload([""]))).status == "failed"
    raises(openai.NotFoundError, client.batches.create, input_file_id="file-none", endpoint=CHAT, completion_window="24h", param="input_file_id")
    raises(openai.BadRequestError, client.batches.create, input_file_id=f.id, endpoint="/v1/nothing", completion_window="24h", param="endpoint")
    raises(openai.BadRequestError, client.batches.create, input_file_id=f.id, endpoint=CHAT, completion_window="soon", param="completion_window")
    raises(openai.NotFoundError, client.batches.retrieve, "batch_none")
    raises(openai.NotFoundError, client.batches.cancel, "batch_none")


def cancelled():
    b = create(upload([line(f"w-{i}", max_tokens=4000) for i in range(3000)]))
    while b.status == "validating" or b.status == "in_progress" and b.request_counts.completed == 0:
        time.sleep(0.2)
        b = client.batches.retrieve(b.id)
    b = client.batches.cancel(b.id)
    assert b.status in ("cancelling", "cancelled") and b.cancelling_at, b
    b = wait(b, 240)
    out, failed = lines_of(b.output_file_id), lines_of(b.error_file_id)
    assert b.status == "cancelled" and b.cancelled_at and failed, b
    assert sorted(l["custom_id"] for l in out + failed) == sorted(f"w-{i}" for i in range(3000))
    assert {l["error"]["code"] for l in failed} == {"batch_cancelled"}
    assert (b.request_counts.completed, b.request_counts.failed) == (len(out), len(failed)), b


def expired():
    b = wait(create(upload([line(f"e-{i}", max_tokens=4000) for i in range(3000)]), completion_window="4s"), 240)
    out, failed = lines_of(b.output_file_id), lines_of(b.error_file_id)
    assert b.status == "expired" and b.expired_at and b.expires_at == b.created_at + 4, b
    assert sorted(l["custom_id"] for l in out + failed) == sorted(f"e-{i}" for i in range(3000))
    assert {l["error"]["code"] for l in failed} == {"batch_expired"}
    assert {l["error"]["message"] for l in failed} == {"This request could not be executed before the completion window expired."}


def retried():
    f = upload([line("once")])
    first = create(f)
    again = create(f, extra_headers={"x-stainless-retry-count": "1"})
    assert again.id == first.id, "a request that the SDK sent again is the same batch"
    assert create(f).id != first.id, "the same request, on purpose, is another"
    key = {"Idempotency-Key": first.id}
    assert create(f, extra_headers=key).id == create(f, extra_headers=key).id
    e = raises(openai.ConflictError, create, f, extra_headers=key, completion_window="1h", code="idempotency_key_reused")
    assert e.response.headers["x-should-retry"] == "false"


def listed():
    f = upload([line("l")])
    ids = [create(f).id for _ in range(250)]
    assert [b.id for b in client.batches.list(limit=40)][:250] == ids[::-1]
    raises(openai.NotFoundError, client.batches.list, after="batch_none", param="after")
    raises(openai.BadRequestError, client.batches.list, limit=101, param="limit")


for step in (files, completed, invalid, retried, cancelled, expired, listed):
    began = time.time()
    step()
    print(f"batches: {step.__name__} as documented ({time.time() - began:.1f} s)", flush=True)
