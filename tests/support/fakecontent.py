"""A content server that serves exactly what it is told to, be it hostile, damaged or gone.

For what an honest server cannot be made to do.  It speaks the real wire formats over real sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from casstore.formats.layout import decode_layout
from casstore.formats.pack import PackDecoder
from casstore.ids import PackId
from casstore.wire import MEDIA_PACK, MEDIA_PAGES, MEDIA_TREE, ChunkAt, PageRecord, encode_page_record
from tests.support.treebuild import BuiltTree, encode_packs


class FakeContent:
    """One tree, its pages and packs.

    ``root``, ``records``, ``packs`` are served as they are at the time of asking; ``asked`` lists the paths.
    """

    def __init__(self) -> None:
        self.root = b""
        self.digest = "blake3:" + "00" * 32
        self.records: dict[bytes, PageRecord] = {}
        self.packs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.before_pack: Callable[[], None] = lambda: None
        self.pages_from: Callable[[bytes], bytes] = lambda data: data
        self.url = ""

    def serve_tree(self, built: BuiltTree) -> None:
        """Serve a tree that was built, under new pack names."""
        self.root, self.digest = built.root, str(built.digest)
        self.packs = {str(pack): data for pack, data in encode_packs(built.objects(), target_bytes=1 << 20)}
        places = self._places()
        for page in built.pages:
            layout = built.layouts[page.ref.digest]
            chunks = [places[chunk] for chunk, _ in decode_layout(layout).chunks]
            self.records[page.ref.digest] = PageRecord(page.data, layout, chunks)

    def _places(self) -> Mapping[bytes, ChunkAt]:
        found: dict[bytes, ChunkAt] = {}
        for name, data in self.packs.items():
            decoder = PackDecoder()
            decoder.feed(data)
            for row in decoder.finish().rows:
                found[row.id] = ChunkAt(PackId.parse(name), row.offset, row.stored_length)
        return found

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeContent]:
        """Listen on a free loopback port."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/trees/{digest}", self._tree)
        app.router.add_post("/v1/trees/{digest}/pages", self._pages)
        app.router.add_get("/v1/packs/{pack}", self._pack)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _tree(self, request: web.Request) -> web.Response:
        self.asked.append("tree")
        if request.match_info["digest"] != self.digest:
            return self._problem("tree-not-found")
        return web.Response(body=self.root, content_type=MEDIA_TREE)

    async def _pages(self, request: web.Request) -> web.Response:
        self.asked.append("pages")
        ids = await request.read()
        wanted = [ids[at : at + 32] for at in range(0, len(ids), 32)]
        data = b"".join(encode_page_record(self.records[page]) for page in wanted)
        return web.Response(body=self.pages_from(data), content_type=MEDIA_PAGES)

    async def _pack(self, request: web.Request) -> web.Response:
        self.asked.append("pack")
        self.before_pack()
        data = self.packs.get(request.match_info["pack"])
        if data is None:
            return self._problem("pack-not-found")
        span = request.http_range
        assert span.start is not None
        assert span.stop is not None
        headers = {"Content-Range": f"bytes {span.start}-{span.stop - 1}/{len(data)}"}
        return web.Response(status=206, body=data[span.start : span.stop], content_type=MEDIA_PACK, headers=headers)

    def _problem(self, code: str) -> web.Response:
        body = {"type": "about:blank", "title": code, "status": 404, "detail": f"no such thing: {code}", "code": code}
        return web.json_response(body, status=404, content_type="application/problem+json")
