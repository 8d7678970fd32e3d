"""Bodies of requests, of every kind"""
import asyncio
import inspect

from reliability.harness import pieces_of


class BodyAgain:
    """An iterable that is not its own iterator, and counts how often it was iterated"""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.count = 0

    def __aiter__(self):
        self.count += 1
        return pieces_of(*self.pieces)


class BodyOfItsOwn(BodyAgain):
    """As a class: a function that returns an iterable"""

    def __init__(self):
        super().__init__(b'ab', b'cde')


class BodyOnce:
    """An iterator that says what was asked of it; a piece may be an exception to raise, or a coroutine function
    to await first"""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.asked = 0
        self.closed = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.asked += 1
        while self.pieces and inspect.iscoroutinefunction(self.pieces[0]):
            await self.pieces.pop(0)()
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def aclose(self):
        self.closed += 1


class BodyWithoutEnd(BodyOnce):
    """Gives its one piece again and again, though not for ever, so that a test that fails also ends"""

    def __init__(self, piece, at_most=100000):
        super().__init__()
        self.piece = piece
        self.at_most = at_most

    async def __anext__(self):
        self.asked += 1
        if self.asked > self.at_most:
            raise StopAsyncIteration
        return self.piece


class BodyWithoutAclose:
    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.pieces:
            raise StopAsyncIteration
        return self.pieces.pop(0)


class BodyMethods:
    """A body as a bound method, and as an object that can be called"""

    async def give(self):
        yield b'ab'
        yield b'cde'

    def __call__(self):
        return self.give()


def pieces_again():
    return pieces_of(b'ab', b'cde')


class SmallPieces(BodyWithoutEnd):
    """No send of them blocks, but the loop turns between them"""

    async def __anext__(self):
        await asyncio.sleep(0)
        return await super().__anext__()


class CountedBody:
    """A function body: a new generator at each call, of which each that was begun must have ended"""

    def __init__(self, *pieces, between=None):
        self.pieces = pieces
        self.between = between
        self.begun = 0
        self.ended = 0

    def __call__(self):
        return self.generate()

    async def generate(self):
        self.begun += 1
        try:
            for piece in self.pieces:
                if self.between is not None:
                    await self.between()
                yield piece
        finally:
            self.ended += 1


class ResizedBody:
    """A body that resizes its buffer when it is closed: where a view of it is still held, that raises a BufferError"""

    def __init__(self, size=1 << 20):
        self.buffer = bytearray(size)
        self.is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return self.buffer

    async def aclose(self):
        self.buffer.clear()
        self.is_closed = True
