"""Verify an output, whichever job wrote it."""

from raypipe.dataset.verify import Verification, stored_job
from raypipe.jobs.classify.verify import verify as verify_predictions
from raypipe.jobs.embed.verify import verify as verify_embeddings
from raypipe.jobs.recommend.verify import refuse_format_1
from raypipe.jobs.recommend.verify import verify as verify_recommendations
from raypipe.storage import Folder

_OF_JOB = {"embed": verify_embeddings, "classify": verify_predictions, "recommend": verify_recommendations}


def verify_any(output: Folder) -> Verification:
    """Check everything that is stored of an output; embed's rules count if no plan says which job it is of.

    Raises:
        ConfigError: recommendations of raypipe 0.1, which cannot be checked.
        StorageError: the output cannot be listed.
    """
    refuse_format_1(output)
    return _OF_JOB.get(stored_job(output), verify_embeddings)(output)
