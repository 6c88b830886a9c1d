"""Errors that the Engine API answers with; each carries the HTTP status that `api.server` answers with.

Raise the one whose name fits; its text is what the user reads, so use dockerd's wording where dockerd has one.
"""


class EngineError(Exception):
    """Base of all errors with a message for the client. Answered with status 500 unless a subclass says otherwise."""

    status = 500


class InvalidParameter(EngineError):
    """The request is malformed or asks for something impossible (400)."""

    status = 400


class Unauthorized(EngineError):
    """A registry or this engine refused the credentials (401)."""

    status = 401


class Forbidden(EngineError):
    """Understood but not allowed (403)."""

    status = 403


class NotFound(EngineError):
    """There is no such object (404)."""

    status = 404


class Conflict(EngineError):
    """The object's state or another object stands in the way (409)."""

    status = 409


class NotModified(EngineError):
    """The object already is in the state asked for (304); has no body."""

    status = 304


class NotImplementedByEngine(EngineError):
    """Moorage does not do this, and says so (501)."""

    status = 501


class Unavailable(EngineError):
    """The feature is off or the engine cannot do it now (503)."""

    status = 503


class SystemError_(EngineError):
    """The engine or the kernel failed (500)."""
