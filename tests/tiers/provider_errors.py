"""Errors as the providers send them, and what the table that ships must make of each.

A line is (provider, status, headers, body, verdict); a verdict is `outcome follow reason`. Above each group stands where
its bodies are documented or were reported; keys and names in them are made up.
"""

# ruff: noqa: E501 - a body is quoted on its line, however long the provider made it

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Recorded(NamedTuple):
    provider: str
    status: int
    headers: dict[str, str]
    body: bytes
    verdict: str


def _openai(message: str, kind: str | None, code: str | int | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _azure(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **more}}


def _anthropic(kind: str, message: str, **more: Any) -> dict[str, Any]:
    error = {"type": kind, "message": message, **more}
    return {"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}


def _qdrant(text: str) -> dict[str, Any]:
    return {"status": {"error": text}, "time": 0.000034}


def _elastic(status: int, kind: str, reason: str, root: str | None = None) -> dict[str, Any]:
    causes = [{"type": root or kind, "reason": reason}]
    return {"error": {"root_cause": causes, "type": kind, "reason": reason}, "status": status}


def _tei(kind: str, text: str) -> dict[str, Any]:
    return {"error": text, "error_type": kind}


def _pinecone(code: int, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "details": []}


def _rows(provider: str, *rows: tuple[Any, ...]) -> list[Recorded]:
    found: list[Recorded] = []
    for status, body, verdict, *headers in rows:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        found.append(Recorded(provider, status, headers[0] if headers else {}, raw, verdict))
    return found


QUOTA = "You exceeded your current quota, please check your plan and billing details."
RATE = "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 29000"
LONG = "This model's maximum context length is 128000 tokens. However, your messages resulted in 140000 tokens."
FILTERED = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
NO_SHARDS = "all shards failed"

# platform.openai.com/docs/guides/error-codes; developersdigest.tech/errors/api/openai-api (codes of 2026);
# github.com/mattvr/shellgpt/issues/23 (insufficient_quota); community.openai.com/t/1372439 (request too large);
# docs.vllm.ai (context length as a BadRequestError with a number for a code)
OPENAI = _rows(
    "openai",
    (429, _openai(QUOTA, "insufficient_quota", "insufficient_quota"), "failure tier quota"),
    (
        429,
        _openai("Your credit balance is used up.", "insufficient_quota", "credit_balance_exhausted"),
        "failure tier quota",
    ),
    (
        429,
        _openai("The spend limit is reached.", "insufficient_quota", "project_spend_limit_exceeded"),
        "failure tier quota",
    ),
    (429, _openai(QUOTA, None, None), "failure tier quota"),
    (
        400,
        _openai("Billing hard limit has been reached", "invalid_request_error", "billing_hard_limit_reached"),
        "failure tier quota",
    ),
    (
        429,
        _openai("Your account is not active, check your billing details.", "billing_not_active", "billing_not_active"),
        "failure tier quota",
    ),
    (402, _openai("Insufficient Balance", "unknown_error", "invalid_request_error"), "failure tier quota"),
    (429, _openai(RATE, "tokens", "rate_limit_exceeded"), "soft here rate_limit", {"retry-after-ms": "250"}),
    (429, _openai("Rate limit reached for requests", "requests", "rate_limit_exceeded"), "soft here rate_limit"),
    (
        429,
        _openai(
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM)",
            "tokens",
            "rate_limit_exceeded",
        ),
        "caller tier too_large",
    ),
    (429, _openai("Slow down.", "rate_limit_error", "slow_down"), "soft here overloaded"),
    (429, "<html>Too Many Requests</html>", "soft here status_429"),
    (400, _openai(LONG, "invalid_request_error", "context_length_exceeded"), "caller back context_length"),
    (400, _openai(LONG, "BadRequestError", 400), "caller back context_length"),
    (
        400,
        {"object": "error", "message": LONG, "type": "BadRequestError", "param": None, "code": 400},
        "caller back context_length",
    ),
    (
        400,
        _openai("Invalid 'input': string too long.", "invalid_request_error", "string_above_max_length"),
        "caller back context_length",
    ),
    (
        400,
        _openai(
            "Your request was rejected as a result of our safety system.",
            "image_generation_user_error",
            "moderation_blocked",
        ),
        "caller back content_filter",
    ),
    (
        400,
        _openai("Your request was rejected as a result of our safety system.", "invalid_request_error", None),
        "caller back content_filter",
    ),
    (400, _openai("you must provide a model parameter", "invalid_request_error", None), "caller back status_400"),
    (
        401,
        _openai("Incorrect API key provided: sk-nope.", "invalid_request_error", "invalid_api_key"),
        "caller back status_401",
    ),
    (
        403,
        _openai(
            "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        "failure tier region",
    ),
    (
        404,
        _openai(
            "The model `gpt-9` does not exist or you do not have access to it.",
            "invalid_request_error",
            "model_not_found",
        ),
        "caller back model_not_found",
    ),
    (
        500,
        _openai("The server had an error while processing your request. Sorry about that!", "server_error", None),
        "failure here status_500",
    ),
    (
        503,
        _openai(
            "The engine is currently overloaded, please try again later",
            "service_unavailable_error",
            "server_is_overloaded",
        ),
        "soft here overloaded",
    ),
    (
        503,
        _openai("That model is currently overloaded with other requests.", "server_error", None),
        "failure here status_503",
    ),
    (502, "<html><head><title>502 Bad Gateway</title></head></html>", "failure here status_502"),
    (520, "error code: 520", "failure here status_520"),
)
# learn.microsoft.com/azure/ai-services/openai (how-to/quota, concepts/content-filter); learn.microsoft.com/answers/2184807
# (429); developersdigest.tech/errors/api/azure-openai; API Management's policy errors (401 with statusCode)
AZURE = _rows(
    "azure",
    (
        429,
        _azure(
            "429",
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2023-12-01-preview have exceeded token rate limit of your current OpenAI S0 pricing tier.",
        ),
        "soft here status_429",
        {"retry-after": "7"},
    ),
    (429, _azure("RateLimitReached", "Rate limit is exceeded. Try again in 6 seconds."), "soft here rate_limit"),
    (
        429,
        _azure("NoCapacity", "The system is currently experiencing high demand and cannot process your request."),
        "soft here overloaded",
    ),
    (
        403,
        _azure("QuotaExceeded", "Out of call volume quota. Quota will be replenished in 2 days."),
        "failure tier quota",
    ),
    (
        403,
        {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 02:45:56."},
        "failure tier quota",
    ),
    (429, _openai(QUOTA, "insufficient_quota", "insufficient_quota"), "failure tier quota"),
    (
        400,
        {
            "error": {
                "message": "The response was filtered",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
            }
        },
        "caller back content_filter",
    ),
    (
        400,
        _azure("BadRequest", FILTERED, innererror={"code": "ResponsibleAIPolicyViolation"}),
        "caller back content_filter",
    ),
    (400, _azure("BadRequest", FILTERED), "caller back content_filter"),
    (400, _openai(LONG, "invalid_request_error", "context_length_exceeded"), "caller back context_length"),
    (
        404,
        _azure("DeploymentNotFound", "The API deployment for this resource does not exist."),
        "caller back model_not_found",
    ),
    (
        401,
        _azure("401", "Access denied due to invalid subscription key or wrong API endpoint."),
        "caller back status_401",
    ),
    (401, {"statusCode": 401, "message": "Access denied due to missing subscription key."}, "caller back status_401"),
    (408, _azure("Timeout", "The operation was timeout."), "failure here status_408"),
    (500, _azure("InternalServerError", "Backend returned unexpected response."), "failure here status_500"),
)
# platform.claude.com/docs/en/api/errors and /rate-limits; docs.llmgateway.io/troubleshooting/anthropic-529-overloaded;
# learn.microsoft.com/microsoft-cloud/dev/dev-proxy (spend limits)
ANTHROPIC = _rows(
    "anthropic",
    (529, _anthropic("overloaded_error", "Overloaded"), "soft here overloaded"),
    (
        429,
        _anthropic("rate_limit_error", "Number of request tokens has exceeded your per-minute rate limit"),
        "soft here rate_limit",
        {"retry-after": "12"},
    ),
    (
        429,
        _anthropic(
            "rate_limit_error",
            "You have reached your API usage limits",
            details={"error_code": "enforced_spend_limit_reached"},
        ),
        "failure tier quota",
    ),
    (
        400,
        _anthropic(
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing",
        ),
        "failure tier quota",
    ),
    (
        400,
        _anthropic("invalid_request_error", "You have reached your specified workspace API usage limits."),
        "failure tier quota",
    ),
    (
        402,
        _anthropic("billing_error", "There is an issue with your billing or payment information"),
        "failure tier quota",
    ),
    (
        400,
        _anthropic("invalid_request_error", "prompt is too long: 205000 tokens > 200000 maximum"),
        "caller back context_length",
    ),
    (
        400,
        _anthropic(
            "invalid_request_error", "input length and `max_tokens` exceed context limit: 199000 + 8000 > 200000"
        ),
        "caller back context_length",
    ),
    (
        400,
        _anthropic("invalid_request_error", "Output blocked by content filtering policy"),
        "caller back content_filter",
    ),
    (400, _anthropic("invalid_request_error", "max_tokens: Field required"), "caller back status_400"),
    (401, _anthropic("authentication_error", "invalid x-api-key"), "caller back status_401"),
    (
        403,
        _anthropic("permission_error", "Your API key does not have permission to use the specified resource."),
        "caller back status_403",
    ),
    (404, _anthropic("not_found_error", "model: claude-nine"), "caller back model_not_found"),
    (413, _anthropic("request_too_large", "Request exceeds the maximum size"), "caller back too_large"),
    (500, _anthropic("api_error", "Internal server error"), "failure here server_error"),
    (504, _anthropic("timeout_error", "The request timed out while processing."), "failure here server_error"),
)
# github.com/ollama/ollama: server/sched.go (busy), server/routes.go (not found), issues/15934 (overloaded)
OLLAMA = _rows(
    "ollama",
    (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, "soft here overloaded"),
    (503, {"error": "Server overloaded, please retry shortly (ref: aaa65c70)"}, "soft here overloaded"),
    (404, {"error": 'model "llama9" not found, try pulling it first'}, "caller back model_not_found"),
    (400, {"error": "registry.ollama.ai/library/x:4b does not support tools"}, "caller back status_400"),
    (400, {"error": "the input length exceeds the context length"}, "caller back context_length"),
    (
        500,
        {"error": "model requires more system memory (9.6 GiB) than is available (5.1 GiB)"},
        "failure elsewhere model_load",
    ),
    (500, {"error": "llama runner process has terminated: exit status 2"}, "failure elsewhere model_load"),
    (500, {"error": "an error was encountered while running the model: unexpected EOF"}, "failure here status_500"),
    (499, {"error": "request canceled"}, "ignored back hung_up"),
)
# docs.cohere.com/reference/errors (messages under each status); docs.cohere.com/v2/docs/rate-limits
COHERE = _rows(
    "cohere",
    (
        429,
        {
            "message": "You are using a Trial key, which is limited to 1000 API calls / month. You can continue to use it"
        },
        "failure tier quota",
    ),
    (429, {"message": "You are using a Trial key, which is limited to 40 API calls / minute."}, "soft here status_429"),
    (429, {"message": "trial token rate limit exceeded, limit is 100000 tokens per minute"}, "soft here status_429"),
    (
        400,
        {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292."},
        "caller back context_length",
    ),
    (
        400,
        {"message": "invalid request: valid input_type must be provided with the provided model"},
        "caller back status_400",
    ),
    (401, {"message": "invalid api token"}, "caller back status_401"),
    (402, {"message": "Please add or update your payment method to continue"}, "failure tier quota"),
    (
        404,
        {"id": "x", "message": "model 'command-z' not found, make sure the correct model ID was used"},
        "caller back model_not_found",
    ),
    (499, {"message": "request cancelled by user"}, "ignored back hung_up"),
    (500, {"message": "internal server error, this has been reported to our developers"}, "failure here status_500"),
)
# github.com/qdrant/qdrant: src/actix/helpers.rs (statuses), issues/7567 and /4020 (time-outs), pull/5917 (rate limits)
QDRANT = _rows(
    "qdrant",
    (404, _qdrant("Not found: Collection `nope` doesn't exist!"), "caller back status_404"),
    (400, _qdrant("Wrong input: Vector dimension error: expected dim: 4, got 3"), "caller back status_400"),
    (401, "Must provide an API key or an Authorization bearer token", "caller back status_401"),
    (403, _qdrant("Forbidden: Global manage access is required"), "caller back status_403"),
    (409, _qdrant("Wrong input: Collection `docs` already exists!"), "caller back status_409"),
    (
        429,
        _qdrant("Rate limiting exceeded: Read rate limit exceeded, retry later"),
        "soft here status_429",
        {"retry-after": "1"},
    ),
    (
        500,
        _qdrant(
            'Service internal error: 1 of 1 read operations failed:\n  Operation Cancelled: message: "Timeout expired"'
        ),
        "failure elsewhere timeout",
    ),
    (
        500,
        _qdrant("Service internal error: Timeout error: Operation 'Search' timed out after 60 seconds"),
        "failure elsewhere timeout",
    ),
    (500, _qdrant("Service internal error: RocksDB open error: IO error"), "failure here status_500"),
    (503, _qdrant("Service unavailable: shard 0 is not active"), "failure here status_503"),
    (507, _qdrant("Insufficient storage: WAL buffer size exceeds available disk space"), "failure elsewhere storage"),
)
# github.com/chroma-core/chroma: chromadb/errors.py, rust/error; pull/4569 (quota, 422), pull/4944 (rate limit)
CHROMA = _rows(
    "chroma",
    (404, {"error": "NotFoundError", "message": "Collection [docs] does not exist"}, "caller back not_found"),
    (
        400,
        {"error": "InvalidArgumentError", "message": "Collection expecting embedding with dimension of 384, got 3"},
        "caller back invalid",
    ),
    (
        500,
        {"error": "InvalidDimension", "message": "Embedding dimension 3 does not match collection dimensionality 384"},
        "caller back invalid",
    ),
    (500, {"error": "ValueError('Collection docs does not exist.')"}, "caller back not_found"),
    (
        422,
        {
            "error": "ChromaError",
            "message": "Quota exceeded: 'Limit value' exceeded quota limit for action 'Get': current usage of 1056 exceeds limit of 300",
        },
        "caller tier quota",
    ),
    (429, {"error": "RateLimitError", "message": "Rate limit exceeded"}, "soft here rate_limit"),
    (500, {"error": "InternalError", "message": "Internal error"}, "failure here status_500"),
    (401, {"error": "AuthError", "message": "Unauthorized"}, "caller back status_401"),
)
# elastic.co/docs/troubleshoot/elasticsearch/rejected-requests; github.com/Philippus/elastic4s/issues/2923 (breaker);
# docs.opensearch.org search-backpressure; docs of Amazon OpenSearch (cluster blocks)
ELASTIC = _rows(
    "elasticsearch",
    (
        429,
        _elastic(429, "es_rejected_execution_exception", "rejected execution of TimedRunnable on QueueResizing"),
        "soft here overloaded",
    ),
    (
        429,
        _elastic(429, "search_phase_execution_exception", NO_SHARDS, "rejected_execution_exception"),
        "soft here overloaded",
    ),
    (
        429,
        _elastic(
            429,
            "circuit_breaking_exception",
            "[parent] Data too large, data for [<http_request>] would be [220036656/209.8mb]",
        ),
        "soft here overloaded",
    ),
    (
        500,
        _elastic(500, "search_phase_execution_exception", NO_SHARDS, "task_cancelled_exception"),
        "soft elsewhere overloaded",
    ),
    (
        403,
        _elastic(403, "cluster_block_exception", "blocked by: [FORBIDDEN/12/index read-only / allow delete (api)];"),
        "failure elsewhere blocked",
    ),
    (
        503,
        _elastic(
            503, "cluster_block_exception", "blocked by: [SERVICE_UNAVAILABLE/1/state not recovered / initialized];"
        ),
        "failure elsewhere blocked",
    ),
    (
        503,
        _elastic(503, "search_phase_execution_exception", NO_SHARDS, "no_shard_available_action_exception"),
        "failure here unavailable",
    ),
    (503, _elastic(503, "master_not_discovered_exception", ""), "failure here unavailable"),
    (404, _elastic(404, "index_not_found_exception", "no such index [docs]"), "caller back not_found"),
    (400, _elastic(400, "parsing_exception", "unknown query [mach]"), "caller back status_400"),
    (409, _elastic(409, "version_conflict_engine_exception", "[1]: version conflict"), "caller back status_409"),
    (
        401,
        _elastic(401, "security_exception", "missing authentication credentials for REST request [/_search]"),
        "caller back status_401",
    ),
)
# router/src/http/server.rs and core/src/lib.rs of huggingface/text-embeddings-inference
TEI = _rows(
    "tei",
    (424, _tei("Backend", "Backend error: Could not execute the model"), "failure here server_error"),
    (424, _tei("Backend", "Backend error: CUDA out of memory"), "failure here server_error"),
    (429, _tei("Overloaded", "Model is overloaded"), "soft here status_429"),
    (503, _tei("Unhealthy", "unhealthy"), "failure here status_503"),
    (422, _tei("Tokenizer", "tokenizer error: TruncationError"), "caller back status_422"),
    (
        413,
        _tei("Validation", "Input validation error: `inputs` must have less than 512 tokens. Given: 900"),
        "caller back too_large",
    ),
    (413, _tei("Validation", "batch size 64 > maximum allowed batch size 32"), "caller back too_large"),
    (400, _tei("Empty", "`inputs` cannot be empty"), "caller back status_400"),
    (401, "", "caller back status_401"),
)
# docs.pinecone.io/reference/api/errors, docs.pinecone.io/reference/api/database-limits
PINECONE = _rows(
    "pinecone",
    (
        429,
        _pinecone(8, "Request failed. You've reached your read unit limit for the current month (1000000)."),
        "failure tier quota",
    ),
    (
        429,
        _pinecone(8, "Request failed. You've reached your write unit limit for the current month (2000000)."),
        "failure tier quota",
    ),
    (
        429,
        {"error": {"code": "RESOURCE_EXHAUSTED", "message": "Too many requests"}, "status": 429},
        "soft here status_429",
    ),
    (400, _pinecone(3, "Vector dimension 3 does not match the dimension of the index 4"), "caller back status_400"),
    (401, "Unauthorized", "caller back status_401"),
    (404, _pinecone(5, "Namespace not found"), "caller back status_404"),
    (500, _pinecone(13, "Internal error"), "failure here status_500"),
    (503, _pinecone(14, "upstream connect error"), "failure here status_503"),
    (504, _pinecone(4, "deadline exceeded"), "failure here status_504"),
)
# RFC 9110, RFC 6585, RFC 8470; 499 is nginx's, 520 to 530 are Cloudflare's, 529 is Anthropic's and others'
PLAIN = _rows(
    "plain",
    (400, "bad", "caller back status_400"),
    (404, "", "caller back status_404"),
    (408, "", "failure here status_408"),
    (413, "too large", "caller back too_large"),
    (425, "", "failure here status_425"),
    (429, "", "soft here status_429"),
    (499, "", "ignored back hung_up"),
    (500, "", "failure here status_500"),
    (501, "", "caller back status_501"),
    (503, "", "failure here status_503"),
    (503, "", "soft here status_503", {"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}),
    (504, "", "failure here status_504"),
    (524, "error code: 524", "failure here status_524"),
    (529, "", "soft here status_529"),
)
RECORDED = (*OPENAI, *AZURE, *ANTHROPIC, *OLLAMA, *COHERE, *QDRANT, *CHROMA, *ELASTIC, *TEI, *PINECONE, *PLAIN)
