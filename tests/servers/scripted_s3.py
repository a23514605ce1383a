"""An S3 server whose listings say what a test wants: objects by pages, and broken answers in the place of pages."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from base64 import b64encode
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.servers.canned import CannedHttp, http_answer


class ScriptedS3(CannedHttp):
    """`objects` is the bucket `b`, listed in pages of `page_size`; it checks no signature.

    `instead` has raw answers by the number of the page, from 0 on; b"" closes the connection. `listings` counts the
    listings that began.
    """

    def __init__(self, page_size: int = 1000) -> None:
        super().__init__(b"")
        self.objects: dict[str, bytes] = {}
        self.instead: dict[int, bytes] = {}
        self.listings = 0
        self._page_size = page_size

    def put_model(self, folder: str, config: bytes) -> None:
        self.objects |= {f"{folder}/config.pbtxt": config, f"{folder}/1/weights": folder.encode()}

    def repository(self, prefix: str) -> str:
        return f"s3://{self.url}/b/{prefix}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            writer.write(self._answer(head))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has seen enough
        finally:
            writer.close()

    def _answer(self, head: str) -> bytes:
        method, target, _ = head.split(" ", 2)
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if "list-type" in query:
            return self._page(query.get("prefix", ""), int(query.get("continuation-token", "0")))
        data = self.objects.get(unquote(parts.path).removeprefix("/b/"))
        if data is None:
            return http_answer(404)
        crc = b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        answer = http_answer(200, data, ETag=_etag(data), x_amz_checksum_crc32=crc, Accept_Ranges="bytes")
        return answer[: answer.index(b"\r\n\r\n") + 4] if method == "HEAD" else answer

    def _page(self, prefix: str, number: int) -> bytes:
        self.listings += number == 0
        if number in self.instead:
            return self.instead[number]
        return http_answer(200, self.page(prefix, number).encode(), Content_Type="application/xml")

    def page(self, prefix: str, number: int) -> str:
        """The XML of one page as an honest server would write it."""
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        here = keys[number * self._page_size : (number + 1) * self._page_size]
        more = len(keys) > (number + 1) * self._page_size
        token = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if more else ""
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<ETag>{escape(_etag(self.objects[key]))}</ETag></Contents>"
            for key in here
        )
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        count = f"<KeyCount>{len(here)}</KeyCount>"
        return f"<ListBucketResult><Name>b</Name>{count}{truncated}{token}{contents}</ListBucketResult>"


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
