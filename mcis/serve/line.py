"""A client's line: uvicorn's, but for what is no HTTP."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Line(H11Protocol):
    """uvicorn's protocol; where what comes is no HTTP, the application's answer, of which it knows nothing, is dropped.

    uvicorn sends a status 400 by itself and closes the line, and then neither the application can send nor, where that
    has begun to, uvicorn: both were errors in the log, as many as a client likes.
    """

    def send_400_response(self, msg: str) -> None:
        """Say so, where nothing was said yet, and close the line."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
