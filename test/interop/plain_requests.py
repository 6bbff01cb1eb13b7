"""Sends plain requests with OpenAI's SDK, unmodified, and checks what it makes of the answers.

Arguments: the base URL of the API, that of the controls of `batchyard fleet`, and the name of its only device.
"""

import sys
import time
import unittest
import urllib.request

import openai

API, CONTROLS, DEVICE = sys.argv[1:4]
MESSAGES = [{"role": "user", "content": "Say hello."}]


def play(name):
    """Makes the device play what real engines do; None: answer well."""
    request = urllib.request.Request(
        f"{CONTROLS}/{DEVICE}/{name}" if name else f"{CONTROLS}/{DEVICE}", method="PUT" if name else "DELETE")
    urllib.request.urlopen(request).close()


class PlainRequests(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"{API}/v1", api_key="unused")
        self.addCleanup(self.client.close)
        self.addCleanup(play, None)

    def test_chat(self):
        answer = self.client.chat.completions.create(model="llama-3", messages=MESSAGES, max_tokens=8)
        self.assertEqual(answer.object, "chat.completion")
        self.assertTrue(answer.choices[0].message.content)
        self.assertGreater(answer.usage.completion_tokens, 0)
        self.assertTrue(answer._request_id)

    def test_completions(self):
        answer = self.client.completions.create(model="llama-3", prompt="Once upon a time", max_tokens=8)
        self.assertTrue(answer.choices[0].text)

    def test_embeddings(self):
        answer = self.client.embeddings.create(model="llama-3", input=["a", "b"])
        self.assertEqual([d.index for d in answer.data], [0, 1])
        self.assertIsInstance(answer.data[0].embedding[0], float)

    def test_responses(self):
        answer = self.client.responses.create(model="llama-3", input="Say hello.")
        self.assertEqual(answer.status, "completed")
        self.assertTrue(answer.output_text)

    def test_moderations(self):
        answer = self.client.moderations.create(model="llama-3", input="hello")
        self.assertIs(answer.results[0].flagged, False)

    def test_models(self):
        names = [m.id for m in self.client.models.list()]
        self.assertEqual(names, ["llama-3", "org/other"])
        for name in names:
            self.assertEqual(self.client.models.retrieve(name).id, name)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-9")

    def test_a_key_is_one_request(self):
        key = f"key-{time.time_ns()}"
        ask = lambda text: self.client.chat.completions.create(
            model="llama-3", messages=[{"role": "user", "content": text}], extra_headers={"Idempotency-Key": key})
        self.assertEqual(ask("one"), ask("one"))
        began = time.monotonic()
        with self.assertRaises(openai.ConflictError) as caught:
            ask("two")
        self.assertEqual(caught.exception.code, "idempotency_key_reused")
        self.assertLess(time.monotonic() - began, 0.4, "the SDK sent it again")

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="lama-3", messages=MESSAGES)
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        self.assertIn("did you mean `llama-3`", caught.exception.message)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="llama-3", messages=MESSAGES, stream=True)
        self.assertEqual(caught.exception.param, "stream")
        with self.assertRaises(openai.BadRequestError) as caught:  # the device says so
            self.client.chat.completions.create(model="llama-3", messages=[{"content": "no role"}])
        self.assertEqual(caught.exception.type, "invalid_request_error")
        self.assertTrue(caught.exception.request_id)

    def test_a_timeout_of_the_sdk_ends_the_task(self):
        play("no_first_byte/hang")
        client = self.client.with_options(timeout=1, max_retries=0)
        with self.assertRaises((openai.APITimeoutError, openai.InternalServerError)):
            client.chat.completions.create(model="llama-3", messages=MESSAGES)
        play(None)
        self.assertTrue(self.client.chat.completions.create(model="llama-3", messages=MESSAGES).choices)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
