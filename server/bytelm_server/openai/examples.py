"""Worked examples for ``/docs``: calls in OpenAI's shape and what the default model answers."""

from bytelm_server.examples import CHAT, answer, call

COMPLETIONS = {
    "text": call(
        "A completion",
        {
            "model": "default",
            "prompt": "An apple a day keeps the ",
            "max_tokens": 12,
            "temperature": 0,
        },
    ),
    "score": call(
        "The log-probability of each byte of a prompt",
        {"prompt": [72, 105], "echo": True, "logprobs": 1, "max_tokens": 0},
        "Ids are bytes.",
    ),
    "samples": call(
        "Several prompts, two texts of each",
        {"prompt": ["Once", "Twice"], "max_tokens": 20, "n": 2, "seed": 7, "stop": "\n"},
    ),
}
COMPLETION_ANSWER = answer(
    "A choice for each text: index = prompt × n + sample.",
    {
        "id": "cmpl-5f0c",
        "object": "text_completion",
        "created": 1700000000,
        "model": "SmolLM2-135M-Instruct",
        "system_fingerprint": "0f8ab3d5c1e29b47",
        "choices": [
            {"index": 0, "text": "doctor away.", "logprobs": None, "finish_reason": "length"}
        ],
        "usage": {"prompt_tokens": 25, "completion_tokens": 12, "total_tokens": 37},
    },
)
COMPLETION_STREAM = (
    'data: {"id":"cmpl-5f0c","object":"text_completion","created":1700000000,'
    '"model":"SmolLM2-135M-Instruct","system_fingerprint":"0f8ab3d5c1e29b47",'
    '"choices":[{"index":0,"text":"d","logprobs":null,"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n"
)

TOKENIZE = {
    "vllm": call("As in vLLM", {"prompt": "Hé", "add_special_tokens": False}),
    "llama": call("As in llama.cpp", {"content": "Hé"}),
    "eos": call("The name of EOS alone", {"prompt": "<|im_end|>"}, "It is 256."),
}
TOKENS_ANSWER = answer(
    "The bytes of the text.", {"tokens": [72, 195, 169], "count": 3, "max_model_len": 4095}
)
DETOKENIZE = {"ids": call("Bytes", {"tokens": [72, 195, 169]})}
UNTOKENIZED_ANSWER = answer("The text of the bytes.", {"prompt": "Hé", "content": "Hé"})
INFO_ANSWER = answer(
    "What clients ask of a tokenizer's configuration.",
    {
        "tokenizer_class": "Bytes",
        "vocab_size": 257,
        "model_max_length": 4095,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "unk_token": None,
        "chat_template": None,
    },
)

CHATS = {
    "question": call(
        "A question",
        {"model": "default", "messages": CHAT, "max_tokens": 60, "temperature": 0, "stop": "\n"},
    ),
    "continued": call(
        "An answer that has begun",
        {
            "messages": [*CHAT, {"role": "assistant", "content": "2+2 is "}],
            "continue_final_message": True,
            "max_completion_tokens": 8,
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
}
CHAT_ANSWER = answer(
    "A choice for each text.",
    {
        "id": "chatcmpl-5f0c",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "SmolLM2-135M-Instruct",
        "system_fingerprint": "0f8ab3d5c1e29b47",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "2+2 is 4.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 140, "completion_tokens": 9, "total_tokens": 149},
    },
)
CHAT_STREAM = (
    'data: {"id":"chatcmpl-5f0c","object":"chat.completion.chunk","created":1700000000,'
    '"model":"SmolLM2-135M-Instruct","system_fingerprint":"0f8ab3d5c1e29b47",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"2"},"logprobs":null,'
    '"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n"
)
