"""Data, store and output on an object store: the command line against a real S3 API on loopback."""

import os
import subprocess
import sys

import boto3
import pyarrow.parquet as pq

from adq.shards import DataSet, file_info, filesystem, locate, read_samples


def test_a_data_set_on_s3_is_compressed_to_s3_and_found_done(s3, shards, tmp_path):
    bucket = s3.removeprefix("s3://")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for path in sorted(shards.iterdir()):
        client.upload_file(str(path), bucket, f"pipeline/data/{path.name}")
    command = [
        sys.executable, "-m", "ray_jobs", "compress", "--data", f"{s3}/pipeline/data/part-{{000000..000003}}.tar",
        "--method", "random", "--keep", "0.25", "--store", f"{s3}/pipeline/runs", "--out", f"{s3}/pipeline/small",
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    refused = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert refused.returncode == 1
    assert "--tracking-uri or MLFLOW_TRACKING_URI" in refused.stderr
    command += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    first = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert first.returncode == 0, first.stderr
    small = locate([f"{s3}/pipeline/small"])
    assert isinstance(small, DataSet)
    kept = [sample["__key__"] for shard in small.shards for sample in read_samples(small, shard)]
    assert len(set(kept)) == len(kept) == 200
    fs, inside = filesystem(f"{s3}/pipeline/small/subset.parquet")
    assert sorted(pq.read_table(inside, filesystem=fs)["key"].to_pylist()) == sorted(kept)
    written = file_info(f"{s3}/pipeline/small/{small.shards[0]}").mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert again.stdout.count("done before") == 3, again.stdout + again.stderr
    assert file_info(f"{s3}/pipeline/small/{small.shards[0]}").mtime_ns == written
