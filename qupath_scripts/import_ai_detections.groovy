/*
 * Takes the regions that hnscc-qp found into the current image, as detections of class "AI: Tumor".
 *
 * Reads <project folder>/ai-detections/<entry id> <image name>.geojson. Earlier detections of ours are
 * replaced, unless a pathologist has touched them: one that was locked, named, coloured or given another
 * class stays as it is, and so does everything else in the image. What a pathologist accepted, rejected
 * or deleted does not come back. Running it twice changes nothing.
 *
 * How to run it: drop this file on QuPath's window, then Run (the open image) or Run > Run for project
 * (all images). Without the window: QuPath script --project=project.qpproj --save import_ai_detections.groovy
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import qupath.lib.io.PathIO
import static qupath.lib.scripting.QP.getCurrentHierarchy
import static qupath.lib.scripting.QP.getCurrentImageData
import static qupath.lib.scripting.QP.getProject
import static qupath.lib.scripting.QP.getProjectEntry

// Change this to true to get deleted detections back.
def bringBackDeleted = false

def entry = getProjectEntry()
if (entry == null) {
    println 'Open an image of a project first.'
    return
}
def image = entry.getImageName()

// The entry's id finds the file: an image may have been renamed in QuPath since.
def folder = getProject().getPath().getParent().resolve('ai-detections').toFile()
def files = (folder.listFiles() ?: []).findAll {
    it.getName().startsWith(entry.getID() + ' ') && it.getName().endsWith('.geojson')
}
if (files.isEmpty()) {
    println image + ': no AI detections in ' + folder + '; run: hnscc-qp push STUDY'
    return
}
def file = files.max { it.lastModified() }

// An id of version 5 is one that hnscc-qp gave; QuPath's own are of version 4.
def isUntouched = { item ->
    item.isDetection() && item.getID().version() == 5 && item.getPathClass()?.toString() == 'AI: Tumor' &&
        !item.isLocked() && item.getName() == null && item.getColor() == null && !item.hasChildObjects()
}

def incoming = PathIO.readObjects(file)  // read all of it before anything is changed
def hierarchy = getCurrentHierarchy()
def present = hierarchy.getAllObjects(false)
def earlier = present.findAll { isUntouched(it) }
def earlierIds = earlier.collect { it.getID() } as Set
def presentIds = present.collect { it.getID() } as Set
def keptIds = presentIds - earlierIds

// What was imported before, and not removed by this script, but is gone: a pathologist deleted it.
def imageData = getCurrentImageData()
def memory = 'hnscc-qp imported detections'
def importedIds = (imageData.getProperty(memory) ?: '').tokenize('\n').collect { UUID.fromString(it) } as Set
def deletedIds = bringBackDeleted ? [] as Set : importedIds - presentIds

def (wanted, left) = incoming.split { !keptIds.contains(it.getID()) && !deletedIds.contains(it.getID()) }
def deleted = left.count { deletedIds.contains(it.getID()) }
def replaced = wanted.count { earlierIds.contains(it.getID()) }
hierarchy.removeObjects(earlier, true)
hierarchy.addObjects(wanted)
def remembered = importedIds - earlierIds + wanted.collect { it.getID() }
imageData.setProperty(memory, remembered.collect { it.toString() }.sort().join('\n'))

println image + ': ' + (wanted.size() - replaced) + ' added, ' + replaced + ' replaced, ' +
    (earlier.size() - replaced) + ' removed, ' + (left.size() - deleted) + ' kept as the pathologist left them, ' +
    deleted + ' left out because they were deleted'
