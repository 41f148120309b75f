"""The behaviour that clients are promised: each promise has an id, a sentence, a source, and at least one test.

`@promise("an.id")` on a test says which promises it proves. `test_manifest.py` keeps this list and the tests equal, so that
neither a promise without a proof nor a proof of nothing can stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from compat_tests.client_manifest import CLIENTS
from compat_tests.native_manifest import NATIVE
from compat_tests.plans_manifest import PLANS
from compat_tests.promised import Promised
from compat_tests.tenants_manifest import TENANTS

MANIFEST: Mapping[str, Promised] = {
    "chat.role-once": Promised("The first chunk of each choice has the role, and no other has.", "§1 [1]"),
    "chat.constants": Promised("`id`, `created`, `model` and `object` are the same in every chunk.", "§1 [2]"),
    "chat.finish-once": Promised("Each choice has exactly one finish reason, at its end.", "§1 [3]"),
    "chat.done": Promised("`[DONE]` comes once and last, the body ends with it, and the connection serves on.", "§1 [3]"),
    "chat.usage-last": Promised("Usage that is asked for is in exactly one chunk, the last.", "§1 [4]"),
    "chat.usage-unasked": Promised("Usage that nobody asked for is nowhere.", "§1 [4]"),
    "chat.tool-deltas": Promised(
        "Tool calls come one per chunk and one after the other: index always, id, type and name once, no nulls.", "§1 [5]"
    ),
    "chat.finish-tool-calls": Promised("`finish_reason` is `tool_calls` whenever a tool was called.", "§1 [6]"),
    "chat.finish-known": Promised("Only the finish reasons that clients know leave.", "§1 [6]"),
    "chat.choice-shape": Promised("Every choice has index, delta, finish_reason and logprobs.", "§1 [7]"),
    "chat.n-choices": Promised("Several choices appear in order, each with its own role and finish.", "§1 [7]"),
    "chat.keepalive": Promised("Silence is filled with comments of one line, which no client takes for an event.", "§1 [8]"),
    "chat.no-ids": Promised("Without being asked, no event has an id, and none has a name.", "§1 [9]"),
    "chat.ids": Promised("Asked by header or option, events have their positions as ids.", "§1 [9]"),
    "chat.hold": Promised("Headers wait for the first output, but not for long.", "§1 [10]"),
    "chat.line-separators": Promised("Characters that end lines for some readers leave as escapes.", "§1 [20]"),
    "chat.headers": Promised("A stream says what it is, and is neither compressed nor cached nor buffered.", "§1 [15]"),
    "chat.unbuffered": Promised("A word leaves when it comes, also when tools are present.", "§1 [15]"),
    "chat.reasoning": Promised("Reasoning goes out under both of its names.", "§1 [17]"),
    "chat.refusal": Promised("A refusal is a refusal, streamed or whole.", "§4"),
    "chat.empty": Promised("An answer without words is still a whole stream.", "§1 [1, 3]"),
    "chat.events": Promised("The run's own events come as empty deltas when they are asked for.", "§4"),
    "chat.obfuscation": Promised("`include_obfuscation` pads the deltas and changes nothing else.", "§2"),
    "chat.whole": Promised("An answer that is not streamed is one object, and says what the stream adds up to.", "§3"),
    "chat.apart": Promised("Many streams at once are kept apart.", "design §1"),
    "errors.before-output": Promised("A failure before the first output is an HTTP status, for streams too.", "§1 [10]"),
    "errors.in-band": Promised("A failure after it is one error event, then the end: no `[DONE]`, no finish reason.", "§1 [10]"),
    "errors.envelope": Promised("Every 4xx and 5xx has the envelope, also for routes and methods that do not exist.", "§1 [11]"),
    "errors.bad-request": Promised("A bad request is a 400 that names the place.", "§1 [12, 19]"),
    "errors.characters": Promised("Lone surrogates, NUL and invalid UTF-8 are a 400.", "§1 [19]"),
    "errors.key": Promised("A missing or wrong key is a 401, before the body is looked at.", "§1 [12, 19]"),
    "errors.model": Promised("An unknown model is a 404 `model_not_found`.", "§1 [12]"),
    "errors.too-large": Promised("A body beyond the limit is a 413.", "§1 [11], §2"),
    "errors.media-type": Promised("Another content type is a 415.", "§1 [11]"),
    "errors.retry-headers": Promised("A 429 says in seconds and milliseconds how long to wait.", "§1 [12]"),
    "errors.context-length": Promised("An overflowing context stays recognisable as one.", "§1 [13]"),
    "errors.upstream-status": Promised("An upstream's refusal keeps its status, code and message.", "§1 [13]"),
    "errors.secrets": Promised("The upstream's secrets and addresses never appear.", "§1 [13]"),
    "errors.credentials": Promised("That an upstream refuses our key is not the client's 401.", "§1 [13]"),
    "errors.lenient": Promised("All documented fields, nulls and unknown fields are accepted.", "§1 [14]"),
    "ids.everywhere": Promised(
        "`x-request-id` and `X-Workflow-ID` are on every response, errors and streams included.", "§1 [16]"
    ),
    "upstream.request": Promised(
        "The upstream gets the client's fields verbatim, unknown ones too, and none of ours.", "§1 [14]"
    ),
    "upstream.developer": Promised("Role `developer` becomes `system` for upstreams that do not know it.", "§1 [14]"),
    "upstream.passed": Promised("Logprobs, function calls and token details are passed on.", "§1 [6], §3, §4"),
    "upstream.prefix": Promised("What follows a prefix entry's slash is the model's name upstream.", "design §4"),
    "upstream.quirks": Promised("What servers do differently is evened out.", "§1 [5, 7], P23"),
    "models.list": Promised("Models are listed in a stable order.", "§3"),
    "models.one": Promised("A model is found by its name, also with slashes in it.", "§3"),
    "resume.count": Promised("A stream cut at any byte goes on after N chunks, with the bytes that are missing.", "§3, P5"),
    "resume.event-id": Promised("So it does after `Last-Event-ID`.", "§3, P5"),
    "resume.live": Promised("Replay is followed by what happens live, with no hole and no repeat.", "§3, P3"),
    "resume.replica": Promised("Any replica can resume any stream.", "§3, P8"),
    "resume.whole": Promised("The JSON of an ended run is what was answered.", "§3"),
    "resume.in-progress": Promised("The JSON of a living run is a 409 with `Retry-After`.", "§3"),
    "resume.stream-by-accept": Promised("`Accept: text/event-stream` asks for the stream.", "§3"),
    "resume.refused": Promised("A place that does not exist is refused, never guessed.", "P4"),
    "resume.tenant": Promised("Another tenant's run looks like a missing one.", "design §1"),
    "leave.cancel": Promised(
        "A client that leaves cancels its run, and the upstream's socket closes, before the first word too.", "§1 [18], P14"
    ),
    "leave.continue": Promised("With `on_disconnect: continue` the run goes on.", "design §7"),
    "leave.grace": Promised("A grace period ends in a cancellation unless somebody comes back.", "design §7"),
    "leave.reader": Promised("Only the requester's leaving counts.", "§1 [18]"),
    "cancel.explicit": Promised(
        "A cancellation closes the upstream's socket, and the reader is told `run_cancelled`.", "§3, §4, P14"
    ),
    "cancel.replica": Promised("Any replica can cancel any run.", "P14"),
    "cancel.once": Promised("Cancelling twice is once.", "P14"),
    "cancel.too-late": Promised("Cancelling an ended run is a conflict and changes nothing.", "P13"),
    "fault.before-output": Promised("Each fault before the first word has its HTTP error.", "P23"),
    "fault.mid-answer": Promised("Each fault after it has its error in the stream.", "P23"),
    "fault.whole": Promised("Half an answer is not given as a whole one.", "P23"),
    "fault.sdk-raises": Promised("The SDK never takes a failure for an answer.", "P13"),
    "fault.refused": Promised("An upstream that refuses connections is a 502.", "P23"),
    "fault.fallback": Promised("The next upstream answers when the first cannot.", "P23"),
    "fault.hedge": Promised("A second upstream answers when the first is silent for too long, and the first is left.", "P14"),
    "fault.resting": Promised("An upstream that fails again and again is not asked for a while: 503, and how long.", "P23"),
    "fault.retry": Promised("An upstream that fails before its first word is asked again.", "P23"),
    "fault.regenerate": Promised(
        "An answer that is generated again goes on without a seam, or ends in an honest error.", "P23, §4"
    ),
    "fault.continue": Promised("An answer that was cut is continued where the upstream can.", "P23"),
    "fault.broken-line": Promised("One broken line is passed over.", "P23"),
    "fault.packets": Promised("How bytes are cut into packets does not matter.", "P23"),
    "fault.no-usage": Promised("Usage that the upstream does not give is counted and flagged.", "P23"),
    "fault.no-end": Promised("Of `[DONE]` and the finish reason one may be missing, but not both.", "P23"),
    "fault.whole-upstream": Promised("An upstream that does not stream is understood.", "design §6"),
    "fault.error-in-success": Promised("A 200 that is no answer is a failure.", "P23"),
    "fault.odd-tools": Promised("Odd tool calls are passed through, never invented.", "P23"),
    "spend.budget": Promised(
        "A run that has used its tokens stops in time, completes with `length`, and says why at the native doors.", "P14, P17"
    ),
    "spend.ledger": Promised("What a client that left has used is counted, once.", "§1 [18], P17"),
    "spend.headers": Promised("An answer names the upstream of its first output, and the try.", "§3"),
    "cache.hit": Promised(
        "The same question to a model with a cache is given the same answer, by a run of its own, and `X-Cache` says so.", "§3"
    ),
    "cache.semantic": Promised("A question that means the same is given the answer too, where the model has it so.", "§3"),
    "cache.tenant": Promised("What one tenant was answered, another is never given.", "design §1"),
    "tools.coherent": Promised(
        "A model that calls tools of its own gives one answer, and shows none of the calls.", "orchestration §1"
    ),
    "tools.resume": Promised("Its stream is resumed at any chunk.", "design §1"),
    "tools.clients-own": Promised("A call of the client's tool ends the turn all the same.", "orchestration §1"),
    "tools.names": Promised("A client's tool cannot have the name of one of the model's.", "orchestration §1"),
    "tools.turns": Promised("A model that only calls tools fails, and says so.", "orchestration §1, design §1"),
    "tools.leaving": Promised("A client that leaves while a tool is called stops the tool.", "P14"),
    "tools.events": Promised("Calls and what came of them are events at every door, without secrets.", "native §2"),
    "turns.asks": Promised(
        "A run that waits for a decision ends its turn with a call of `request_approval`.", "orchestration §1, §3"
    ),
    "turns.continues": Promised(
        "The result of that call continues the same run, as a completion of its own.", "orchestration §1, §3"
    ),
    "turns.denied": Promised("No is an error that says who, what and why.", "orchestration §3"),
    "turns.once": Promised(
        "A decision is made once: the same again is answered again, another one is a 409.", "orchestration §3, P21"
    ),
    "turns.refused": Promised("What cannot be understood, never was, or is a stranger's decides nothing.", "orchestration §3"),
    "turns.resume": Promised("Every turn can be resumed anywhere, on any replica, with the same bytes.", "design §1"),
    "turns.every-door": Promised("A denial is the same at every native door.", "orchestration §3"),
    "turns.deciders": Promised("Whichever door an approval is given at, the plan goes on.", "orchestration §3, P21"),
    "turns.langchain": Promised("LangChain: an approval is a tool call like any other.", "orchestration §1"),
    "turns.reasoning": Promised("Agents that do not answer are reasoning, where that is asked for.", "orchestration §1"),
    "progress.inline": Promised("A plan that comes with the request runs, and its progress can be watched.", "orchestration §2"),
    "sessions.memory": Promised("Earlier turns of a session are context for models that say so, and for no other.", "issue 5.7"),
    "sdk.whole": Promised("openai-python: whole answers.", "§3"),
    "sdk.stream": Promised("openai-python: streams, with usage and without.", "§1"),
    "sdk.stream-helper": Promised("openai-python: `.stream()` accumulates.", "§1 [1, 5]"),
    "sdk.tools": Promised("openai-python: tools are called and answered.", "§1 [5], §2"),
    "sdk.parse": Promised("openai-python: structured output.", "§2"),
    "sdk.raw-response": Promised("openai-python: raw and streaming responses.", "§1 [16]"),
    "sdk.errors": Promised("openai-python: each error has its class and its facts.", "§1 [10, 12]"),
    "sdk.retries": Promised("openai-python: it retries what may help and nothing else.", "§1 [12]"),
    "sdk.keepalive": Promised("openai-python: keepalives and ids do not disturb it.", "§1 [8, 9]"),
    "sdk.resume": Promised("openai-python: a completion is retrieved and a stream resumed.", "§3"),
    "sdk.close": Promised("openai-python: closing, cancelling or timing out closes the upstream.", "§1 [18], P14"),
    "langchain.invoke": Promised("LangChain: invoke.", "§3"),
    "langchain.stream": Promised("LangChain: stream and astream, with usage and without.", "§1 [4]"),
    "langchain.tools": Promised("LangChain: tools, whole and streamed.", "§1 [5]"),
    "langchain.structured": Promised("LangChain: structured output.", "§2"),
    "langchain.errors": Promised("LangChain: errors before the first word and after it.", "§1 [10], P13"),
    "langchain.leaving": Promised("LangChain: leaving the stream closes the upstream.", "§1 [18], P14"),
    **NATIVE,
    **CLIENTS,
    **PLANS,
    **TENANTS,
    "judge.finds-every-breach": Promised("The judge of streams finds every breach of the rules it knows.", "style"),
}


def promise(*ids: str) -> pytest.MarkDecorator:
    """Marks a test as a proof of these promises."""
    unknown = [each for each in ids if each not in MANIFEST]
    if unknown:
        raise LookupError(f"compat_tests/manifest.py does not know {unknown}")
    return pytest.mark.promise(*ids)
