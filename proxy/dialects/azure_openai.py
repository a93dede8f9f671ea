"""Azure OpenAI: OpenAI's bodies at paths of its own, where the deployment, not the model, says who answers.

    /openai/deployments/{deployment}/embeddings?api-version=…            header api-key, or a bearer token
    /openai/deployments/{deployment}/chat/completions?api-version=…

A route claims one deployment, for a deployment is one model, and so one vector space. Azure's newer surface,
`/openai/v1`, is OpenAI's own dialect.
"""

from __future__ import annotations

from understudy.policies.service import Call, Request
from understudy.proxy.dialects.openai_chat import OpenAIChat
from understudy.proxy.dialects.openai_embeddings import OpenAIEmbeddings


class AzureEmbeddings(OpenAIEmbeddings):
    """`azure-openai-embeddings`: a POST to a deployment's `embeddings`; the rest of it is passed through."""

    name = "azure-openai-embeddings"

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        if request.path.endswith(b"/embeddings"):
            return super().read(request)
        return Call("pass", request, dialect=self.name)


class AzureChat(OpenAIChat):
    """`azure-openai-chat`: a POST to a deployment's `chat/completions`; the rest of it is passed through."""

    name = "azure-openai-chat"

    def read(self, request: Request) -> Call:
        """Looks for `stream` only, as OpenAI's chat does."""
        if request.path.endswith(b"/chat/completions"):
            return super().read(request)
        return Call("pass", request, dialect=self.name)
