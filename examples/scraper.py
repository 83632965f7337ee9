"""A scraper: async code with aiohttp, a secret, errors that are counted instead of ending the job.

python examples/scraper.py --urls '["http://127.0.0.1:8000/"]' --rounds 3
SKALDS_WORKERS=examples.scraper faust -A skalds_streams worker
skalds-streams assign news --class Scraper urls='["http://127.0.0.1:8000/"]' everyS=60
"""

import asyncio
import sys

import aiohttp
from pydantic import BaseModel, Field, HttpUrl, SecretStr

from skalds_streams.worker import BaseTaskWorker, run_main_handler, update_event_handler


class ScraperParams(BaseModel):
    """What a Scraper can be told. Documents may say `everyS` or `every_s`."""

    urls: list[HttpUrl] = Field(min_length=1)
    every_s: float = Field(60, gt=0, alias="everyS", description="Seconds between two rounds.")
    rounds: int | None = Field(None, ge=1, description="Finish after so many; without it, go on for ever.")
    token: SecretStr | None = Field(None, description="Sent as a bearer token. Masked wherever parameters are shown.")


class Scraper(BaseTaskWorker[ScraperParams]):
    """Fetches pages, all of a round at once."""

    def initialize(self, data: ScraperParams) -> None:
        self.pages, self.errors = 0, 0
        self.change(data)

    @run_main_handler
    async def scrape(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            for _ in range(self.params.rounds or sys.maxsize):
                await asyncio.gather(*(self.fetch(session, str(url)) for url in self.params.urls))
                self.metric("pages", self.pages)
                self.metric("errors", self.errors)
                await asyncio.sleep(self.params.every_s)

    async def fetch(self, session: aiohttp.ClientSession, url: str) -> None:
        try:
            async with session.get(url, headers=self.headers, raise_for_status=True) as answer:
                self.logger.info("%s: %d bytes", url, len(await answer.read()))
                self.pages += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.logger.warning("%s: %s", url, error)
            self.errors += 1

    @update_event_handler
    def change(self, data: ScraperParams) -> None:
        self.params = data
        self.headers = {"Authorization": f"Bearer {data.token.get_secret_value()}"} if data.token else {}


if __name__ == "__main__":
    Scraper.cli()
