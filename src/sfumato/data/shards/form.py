"""Shards as containers of images."""

from sfumato.data.containers.storage import Form
from sfumato.data.shards.reading import open_member, read_shard

ENDING = ".tar"
SHARDS = Form("shard", ENDING, read_shard, open_member)
