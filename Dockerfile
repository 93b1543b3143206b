# Run the pipeline in a container, on the image's copy of the project:
#   docker build --tag bestepoch .
#   docker run --name bestepoch bestepoch               # fetch, split, train, evaluate; any command can follow
#   docker cp bestepoch:/project/results .              # metrics, report, figures, model
#   docker start --attach bestepoch                     # again: runs what is out of date
# All that a run reads and writes is below /project. With the checkout mounted there, data/, results/, runs/, dvc.lock,
# DVC's cache and the MLflow store are kept in it, as without a container, and `dvc exp run` works:
#   docker build --tag bestepoch --build-arg UID="$(id -u)" .
#   docker run --rm --volume "$PWD:/project" bestepoch
FROM python:3.11-slim

# PyTorch's index of builds without CUDA, which are several GB smaller. For an NVIDIA GPU, PyPI's build:
#   --build-arg TORCH_INDEX=https://pypi.org/simple, and then docker run --gpus all
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG UID=1000

# git trusts a mounted checkout whoever owns it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /project \
    && useradd --create-home --uid "$UID" bestepoch \
    && install --directory --owner=bestepoch /project

WORKDIR /project
COPY requirements.txt ./
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --requirement requirements.txt
COPY --chown=bestepoch . .
RUN pip install --no-cache-dir --no-deps --editable .

ENV MLFLOW_DISABLE_TELEMETRY=true
USER bestepoch
# The copy is no git repository (.dockerignore): DVC runs without one here, MLflow notes no commit, and `dvc exp run`
# needs the mounted checkout.
RUN dvc config --local core.no_scm true
CMD ["dvc", "repro"]
